"""How much each prompt token supports the reported answer: one table of methods, one number per token.

`paper` (norm of the loss gradient, the whole response), `gradient_norm`, `gradient_x_input` and
`integrated_gradients` (Captum) differentiate the log-probability of the answer with respect to the prompt's input
embeddings; `occlusion` deletes each token and scores the answer again, block by block in a long prompt (occlusion.py).
All explain one `Target` (target.py).
The weights are frozen meanwhile and nothing about the model is left changed. No method says whether a high score is
a trigger: only the counterfactual tests do.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from core.errors import AttributionError
from core.loaded import LoadedModel, is_out_of_memory
from core.occlusion import Deletions, borders_of, occlude
from core.progress import Progress
from core.settings import AttributionSettings
from core.target import TargetLogProb
from core.values import Attribution, Estimate, FailureCase, MethodName, Target, read_only

EMBEDDING_ROWS = 4096
"""Rows of the vocabulary averaged at once for the mean baseline, so that a large one needs no second copy."""
SMALLEST_DIFFERENCE = 1e-9
"""|F(x) - F(baseline)| in nats below which a completeness gap as a share of it has no meaning."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RawScores:
    """What a method returns: scores (n_prompt,), profile (n_target, n_prompt) or None, and its completeness gap."""

    scores: torch.Tensor
    profile: torch.Tensor | None = None
    completeness_gap: float | None = None
    baseline: str | None = None


def attribute(
    loaded: LoadedModel,
    case: FailureCase,
    method: MethodName,
    target: Target,
    settings: AttributionSettings | None = None,
    *,
    refusal_ids: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Attribution:
    """Return the scores of every prompt token of `case`; only the user's own tokens are marked as scored.

    `paper` always explains the whole response. `refusal_ids`, the right answer where that is no refusal, is needed by
    the contrast target alone.

    Raises: AttributionError when the method or target does not exist, prompt and answer exceed the context, memory
    runs out, or a score is not finite.
    """
    settings = settings or AttributionSettings()
    if method not in METHODS:
        raise AttributionError(f"There is no attribution method {method!r}: choose one of {', '.join(METHODS)}.")
    if method == "paper":
        target = Target(kind="response")
    started, calls_before, batches_before = time.perf_counter(), loaded.model_calls, loaded.batches
    with _explaining(loaded, case, target, refusal_ids, method, settings) as function:
        raw = METHODS[method](function, settings, progress)
        calls, batches = loaded.model_calls - calls_before, loaded.batches - batches_before
    scores = _finite(raw.scores, method, loaded)
    return Attribution(
        method=method,
        target=target,
        scores=scores,
        scored=read_only(function.scored),
        signed=method not in UNSIGNED,
        profile=None if raw.profile is None else _finite(raw.profile, method, loaded),
        completeness_gap=raw.completeness_gap,
        baseline=raw.baseline,
        seconds=time.perf_counter() - started,
        model_calls=calls,
        batches=batches,
    )


def estimate(
    loaded: LoadedModel,
    case: FailureCase,
    target: Target,
    settings: AttributionSettings | None = None,
    *,
    refusal_ids: Sequence[int] | None = None,
) -> Estimate | None:
    """Return what occlusion of a long `case` will take at most, from one timed batch; None where it goes token by token.

    Raises: AttributionError as `attribute`.
    """
    settings = settings or AttributionSettings()
    if sum(token.segment == "user" for token in case.prompt.tokens) <= settings.hierarchical_above:
        return None
    with _explaining(loaded, case, target, refusal_ids, "occlusion", settings) as function:
        return Deletions(function, settings, None).estimate(borders_of(case, function.scored), settings)


def response_profile(
    loaded: LoadedModel,
    case: FailureCase,
    target: Target,
    settings: AttributionSettings | None = None,
    *,
    refusal_ids: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return gradient x input of each explained response token, (n_rows, n_prompt), at most `profile_tokens` rows.

    For the picture of a method that has no profile of its own; one forward and one backward a row, without Captum.

    Raises: AttributionError as `attribute` does.
    """
    settings = settings or AttributionSettings()
    with _explaining(loaded, case, target, refusal_ids, "the response profile", settings) as function:
        n_rows = min(function.n_target, settings.profile_tokens)
        profile = _gradient_rows(function, function.prompt[0], n_rows, progress)
    return _finite(profile, "the response profile", loaded)


@contextmanager
def _explaining(
    loaded: LoadedModel,
    case: FailureCase,
    target: Target,
    refusal_ids: Sequence[int] | None,
    what: str,
    settings: AttributionSettings,
) -> Iterator[TargetLogProb]:
    """Bind the target with the model locked and frozen; out of memory becomes one sentence."""
    with loaded.lock, _frozen(loaded.model):
        function = TargetLogProb(loaded, case, target, refusal_ids, settings.activations_mb)
        try:
            yield function
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise AttributionError(
                f"{what} ran out of memory on {len(case.prompt.tokens)} prompt and {function.n_target} response "
                "tokens: explain the first k response tokens, lower the batch settings, or use the CPU."
            ) from error


def _paper(function: TargetLogProb, settings: AttributionSettings, progress: Progress | None) -> RawScores:
    """Return ||d L / d e_i||_2 with L = -sum over all response tokens of log P: one forward, one backward.

    Source: Patcher, arXiv 2606.02995, section on trigger localisation (method.md section 2).
    """
    embeddings = function.leaf()
    (gradient,) = torch.autograd.grad(-function(embeddings).sum(), embeddings)
    return RawScores(scores=gradient[0].norm(dim=-1))


def _gradient_norm(function: TargetLogProb, settings: AttributionSettings, progress: Progress | None) -> RawScores:
    """Return ||g_i||_2 of the target's gradient g; the profile projects each response token's gradient on g_i / ||g_i||.

    Norms do not add up over response tokens; these projections do: they sum to ||g_i||.
    """
    from captum.attr import Saliency

    gradient = Saliency(function).attribute(function.leaf(), abs=False)[0]
    norm = gradient.norm(dim=-1)
    direction = gradient / norm.clamp_min(torch.finfo(norm.dtype).tiny)[:, None]
    return RawScores(scores=norm, profile=_gradient_profile(function, direction, settings, progress))


def _gradient_x_input(function: TargetLogProb, settings: AttributionSettings, progress: Progress | None) -> RawScores:
    """Return g_i . e_i, signed; the profile holds the same for each response token and sums to it."""
    from captum.attr import InputXGradient

    scores = InputXGradient(function).attribute(function.leaf())[0].sum(-1)
    return RawScores(scores=scores, profile=_gradient_profile(function, function.prompt[0], settings, progress))


def _integrated_gradients(
    function: TargetLogProb, settings: AttributionSettings, progress: Progress | None
) -> RawScores:
    """Return integrated gradients from a baseline that replaces the user's own tokens and keeps the template.

    The scores of the scored tokens then sum to F(x) - F(baseline) up to the completeness gap.
    Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365; Gauss-Legendre points (Captum's default).
    """
    from captum.attr import IntegratedGradients

    baseline = function.prompt.clone()
    scored = torch.from_numpy(function.scored).to(baseline.device)
    baseline[0, scored] = _baseline_embedding(function, settings.ig_baseline)
    done = 0

    def counted(prompt: torch.Tensor) -> torch.Tensor:
        nonlocal done
        done += prompt.shape[0]
        if progress is not None:
            progress("integrated gradients", min(done, settings.ig_steps), settings.ig_steps)
        return function(prompt)

    attributed = IntegratedGradients(counted).attribute(
        function.leaf(), baselines=baseline, n_steps=settings.ig_steps, internal_batch_size=settings.ig_batch
    )
    scores = attributed[0].sum(-1).detach()
    with torch.no_grad():
        here, there = function(torch.cat([function.prompt, baseline])).tolist()
    difference = abs(here - there)
    gap = abs(float(scores.sum()) - (here - there)) / difference if difference > SMALLEST_DIFFERENCE else None
    return RawScores(scores=scores, completeness_gap=gap, baseline=settings.ig_baseline)


def _occlusion(function: TargetLogProb, settings: AttributionSettings, progress: Progress | None) -> RawScores:
    """Return how much F falls, in nats, when each scored token is deleted; unscored tokens have 0.

    Of a long prompt (`hierarchical_above`) only the tokens of the blocks that matter are deleted one by one; every
    other one has an equal share of its block's drop.
    """
    profile = occlude(function, settings, progress)
    return RawScores(scores=profile.sum(0), profile=profile)


METHODS: dict[MethodName, Callable[[TargetLogProb, AttributionSettings, Progress | None], RawScores]] = {
    "paper": _paper,
    "gradient_norm": _gradient_norm,
    "gradient_x_input": _gradient_x_input,
    "integrated_gradients": _integrated_gradients,
    "occlusion": _occlusion,
}
UNSIGNED: frozenset[MethodName] = frozenset({"paper", "gradient_norm"})


def _gradient_profile(
    function: TargetLogProb, direction: torch.Tensor, settings: AttributionSettings, progress: Progress | None
) -> torch.Tensor | None:
    """Return the rows of all explained tokens, or None when they are more than `settings.profile_tokens`."""
    if function.n_target > settings.profile_tokens:
        return None
    return _gradient_rows(function, direction, function.n_target, progress)


def _gradient_rows(
    function: TargetLogProb, direction: torch.Tensor, n_rows: int, progress: Progress | None
) -> torch.Tensor:
    """Return the first explained tokens' gradients times `direction` (n_prompt, hidden), summed: (n_rows, n_prompt).

    One forward pass for all, one backward pass a row.
    """
    embeddings = function.leaf()
    values = function.tokens(embeddings)[0]
    rows = []
    for j in range(n_rows):
        (gradient,) = torch.autograd.grad(values[j], embeddings, retain_graph=j + 1 < n_rows)
        rows.append((gradient[0] * direction).sum(-1))
        if progress is not None:
            progress("response profile", j + 1, n_rows)
    return torch.stack(rows)


def _baseline_embedding(function: TargetLogProb, name: str) -> torch.Tensor:
    """Return the baseline embedding (hidden,): the vocabulary's mean, zeros, or the end-of-sequence token's.

    Always through the embedding module: some models scale inside it.
    """
    embedding, device = function.embedding, function.prompt.device
    if name == "zeros":
        return torch.zeros_like(function.prompt[0, 0])
    with torch.no_grad():
        if name == "eos":
            eos_ids = list(function.loaded.eos_ids)
            if not eos_ids:
                raise AttributionError("This model has no end-of-sequence token: choose the mean baseline.")
            return embedding(torch.tensor(eos_ids[:1], device=device))[0].float()
        n_rows = embedding.weight.shape[0]
        total = torch.zeros_like(function.prompt[0, 0])
        for ids in torch.arange(n_rows, device=device).split(EMBEDDING_ROWS):
            total += embedding(ids).float().sum(0)
        return total / n_rows


@contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, weights without gradients, gradients on; every flag as it was afterwards."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def _finite(values: torch.Tensor, method: str, loaded: LoadedModel) -> np.ndarray:
    """Return `values` as a read-only float32 array. Raises: AttributionError when one is not finite."""
    array = values.detach().float().cpu().numpy()
    if not np.isfinite(array).all():
        n_bad = int((~np.isfinite(array)).sum())
        raise AttributionError(
            f"{method} gave {n_bad} of {array.size} scores that are not finite: the model overflows in "
            f"{next(loaded.model.parameters()).dtype}; load it in float32, or check its weights."
        )
    return read_only(array)
