"""What attribution explains, as a function of the prompt's embeddings: the log-probability of an answer, or a contrast of two.

Whole prompts are scored with gradients, prompts without some of their tokens from a cache of what stands before. What this
does not do: say which token mattered; that is the methods' part (attribution.py, occlusion.py).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from core.errors import AttributionError
from core.kinds import n_compared
from core.loaded import LoadedModel
from core.recompute import kept_mb, recomputed
from core.settings import AttributionSettings
from core.shared_prefix import can_be_cut, copies
from core.values import FailureCase, Target

if TYPE_CHECKING:
    from transformers.cache_utils import Cache


class TargetLogProb:
    """The explained quantity F as a function of the prompt's input embeddings, in nats.

    F = sum over the answers a of sign_a * sum over the explained positions j of log P(answer_a[j] | prompt, answer_a
    before j). One answer with sign +1 is the log-probability of (a part of) the response; the contrast has the
    response with +1 and the refusal with -1, both cut to the same length. Only positions that predict an explained
    token go through the LM head.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        case: FailureCase,
        target: Target,
        refusal_ids: Sequence[int] | None,
        activations_mb: int = AttributionSettings.activations_mb,
    ):
        """Bind F to a case. Raises: AttributionError when the target or the case cannot be explained.

        What would keep more than `activations_mb` for its backward pass keeps the inputs of the layers alone.
        """
        self.activations_mb = activations_mb
        answers, self.signs, explained = _answers(case, target, refusal_ids)
        prompt_ids = case.prompt.ids
        _check_length(len(prompt_ids), len(answers[0]), loaded.context_length)
        self.loaded, self.case = loaded, case
        self._cache: tuple[Cache | None] | None = None
        self.embedding = loaded.model.get_input_embeddings()
        self.answers = torch.tensor(answers, device=loaded.device)
        self.explained = torch.tensor(explained, device=loaded.device)
        self.first = min(explained)
        self.scored = np.array([token.segment == "user" for token in case.prompt.tokens], dtype=bool)
        with torch.no_grad():
            ids = torch.tensor([prompt_ids], device=loaded.device)
            self.prompt = self.embedding(ids).float()  # (1, n_prompt, hidden)
            self.context = self.embedding(self.answers[:, :-1])  # (n_answers, n_answer - 1, hidden)

    @property
    def n_target(self) -> int:
        """Number of explained token positions, the rows of a profile."""
        return len(self.explained)

    def leaf(self) -> torch.Tensor:
        """Return a fresh copy (1, n_prompt, hidden) of the prompt's embeddings that gradients can be taken of."""
        return self.prompt.clone().requires_grad_()

    def tokens(self, prompt: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return F split by explained position, (n, n_target), for prompts (n, any length, hidden).

        `mask` (n, length) is 0 where a shorter prompt is filled up on the left.
        """
        n, n_answers = prompt.shape[0], len(self.signs)
        rows = prompt.to(self.context.dtype).repeat(n_answers, 1, 1)  # answer by answer
        context = self.context.repeat_interleave(n, dim=0)
        answers = self.answers.repeat_interleave(n, dim=0)
        keep = self.answers.shape[1] - self.first
        inputs = torch.cat([rows, context], dim=1)
        places = _places(None if mask is None else mask.repeat(n_answers, 1), context.shape[1])
        with self._keeping(inputs):
            output = self.loaded.model(inputs_embeds=inputs, use_cache=False, logits_to_keep=keep, **places)
        self._count(n * n_answers)
        logits = output.logits[:, -keep:].float()
        return self._signed(logits.view(n_answers, n, keep, -1), answers.view(n_answers, n, -1))

    @property
    def n_logits(self) -> int:
        """How many logits one prompt takes: of every answer the rows from the first explained token on."""
        rows = len(self.signs) * (self.context.shape[1] + 1 - self.first)
        return rows * int(self.loaded.model.get_input_embeddings().weight.shape[0])

    def _keeping(self, inputs: torch.Tensor) -> AbstractContextManager[None]:
        """Return the block in which a forward pass of (n, length, hidden) keeps no more for its backward pass than it may."""
        model = self.loaded.model
        much = inputs.requires_grad and kept_mb(model, inputs.shape[0] * inputs.shape[1]) > self.activations_mb
        return recomputed(model) if much else nullcontext()

    def without(self, deletions: Sequence[np.ndarray]) -> torch.Tensor:
        """Return F split by explained position, (n, n_target), for the prompt without each of the sets of positions.

        The keys and values of what stands before the first deletion, and those of the prompt for all answers, are
        computed once, where the model's cache allows.
        """
        everywhere = np.arange(self.prompt.shape[1])
        kept = [np.setdiff1d(everywhere, gone, assume_unique=True) for gone in deletions]
        alike = len({len(one) for one in kept}) == 1  # nothing to fill up, so nothing to mask
        cache = self._whole_prompt()
        shared = min(min(int(gone[0]) for gone in deletions), min(map(len, kept)) - 1) if cache is not None else 0
        suffixes = [self.prompt[0][torch.from_numpy(one[shared:])] for one in kept]
        width = max(map(len, suffixes))
        rows = torch.stack([torch.nn.functional.pad(one, (0, 0, width - len(one), 0)) for one in suffixes])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in suffixes], device=rows.device)
        if cache is None:
            return self.tokens(rows, None if alike else mask)
        mask = torch.cat([mask.new_ones(len(kept), shared), mask], dim=1)
        return self._continued(rows.to(self.context.dtype), None if alike else mask, copies(cache, shared, len(kept)))

    def _continued(self, rows: torch.Tensor, mask: torch.Tensor | None, cache: "Cache | None") -> torch.Tensor:
        """Return F (n, n_target) for prompts whose beginning is in `cache`: one pass for `rows` with a single answer, of
        several answers one more for all of them."""
        n, n_answers, n_context = len(rows), len(self.signs), self.context.shape[1]
        alone = n_answers == 1
        inputs = torch.cat([rows, self.context.expand(n, -1, -1)], dim=1) if alone else rows
        output = self.loaded.model(
            inputs_embeds=inputs,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=n_context + 1 - self.first if alone else 1,
            **_places(mask, n_context if alone else 0, inputs.shape[1]),
        )
        self._count(n * n_answers)
        if alone:
            logits = output.logits[:, -(n_context + 1 - self.first) :].float()
            return self._signed(logits[None], self.answers[:, None].expand(-1, n, -1))
        logits = output.logits[:, -1:].repeat_interleave(n_answers, dim=0)  # prompt by prompt
        if n_context:
            output.past_key_values.batch_repeat_interleave(n_answers)
            each = None if mask is None else mask.repeat_interleave(n_answers, dim=0)
            context = self.context.repeat(n, 1, 1)
            cache = output.past_key_values
            later = self.loaded.model(
                inputs_embeds=context, past_key_values=cache, use_cache=True, **_places(each, n_context, n_context)
            )
            self.loaded.batches += 1
            self.loaded.passes += 1
            logits = torch.cat([logits, later.logits], dim=1)
        logits = logits[:, self.first :].float().view(n, n_answers, n_context + 1 - self.first, -1).transpose(0, 1)
        return self._signed(logits, self.answers[:, None].expand(-1, n, -1))

    def _signed(self, logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """Return F (n, n_target) from logits (n_answers, n, from the first explained on, vocabulary) and answers (n_answers, n, length)."""
        chosen = logits.gather(-1, answers[..., self.first :, None])[..., 0]
        logprobs = (chosen - logits.logsumexp(-1))[..., self.explained - self.first]
        signs = torch.tensor(self.signs, device=logprobs.device, dtype=logprobs.dtype)
        return (logprobs * signs[:, None, None]).sum(0)

    def _count(self, n_sequences: int) -> None:
        self.loaded.model_calls += n_sequences
        self.loaded.batches += 1
        self.loaded.passes += 1

    def _whole_prompt(self) -> "Cache | None":
        """Return the keys and values of the whole prompt, computed once, or None where they cannot be cut."""
        if self._cache is None:
            inputs = self.prompt.to(self.context.dtype)
            output = self.loaded.model(inputs_embeds=inputs, use_cache=True, logits_to_keep=1)
            self._count(1)
            cache = getattr(output, "past_key_values", None)
            self._cache = (cache if can_be_cut(cache) else None,)
        return self._cache[0]

    def __call__(self, prompt: torch.Tensor) -> torch.Tensor:
        """Return F (n,) for prompts (n, any length, hidden)."""
        return self.tokens(prompt).sum(-1)


def _answers(
    case: FailureCase, target: Target, refusal_ids: Sequence[int] | None
) -> tuple[list[list[int]], list[float], list[int]]:
    """Return the answers (all of one length), their signs, and the explained positions in them."""
    response = list(case.response_ids)
    if not response or not case.prompt.tokens:
        raise AttributionError("There is no response to explain: the report needs a prompt and a response.")
    if target.kind in ("first_k", "contrast") and target.k < 1:
        raise AttributionError(f"k is {target.k}: explain at least the first response token.")
    if target.kind == "response":
        return [response], [1.0], list(range(len(response)))
    if target.kind == "first_k":
        n = min(target.k, len(response))
        return [response[:n]], [1.0], list(range(n))
    if target.kind == "contrast":
        if not refusal_ids:
            raise AttributionError("The contrast target needs a refusal to compare with: pass its token ids.")
        n = n_compared(response, refusal_ids, target.k)
        return [response[:n], list(refusal_ids)[:n]], [1.0, -1.0], list(range(n))
    if target.kind != "tokens":
        raise AttributionError(f"There is no target {target.kind!r}: response, first_k, tokens or contrast.")
    positions = sorted(set(target.positions))
    if not positions or positions[0] < 0 or positions[-1] >= len(response):
        raise AttributionError(
            f"Response positions {list(target.positions)} do not all exist: choose from 0 to {len(response) - 1}."
        )
    return [response[: positions[-1] + 1]], [1.0], positions


def _places(mask: torch.Tensor | None, n_more: int, n_last: int | None = None) -> dict[str, torch.Tensor]:
    """Return attention mask and positions of left-filled rows with `n_more` tokens behind; positions of the last `n_last`.

    Without a mask, nothing: the model numbers full rows by itself, at the cost of no mask.
    """
    if mask is None:
        return {}
    mask = torch.cat([mask, mask.new_ones(len(mask), n_more)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    return {"attention_mask": mask, "position_ids": positions[:, -(n_last or mask.shape[1]) :]}


def _check_length(n_prompt: int, n_answer: int, context_length: int | None) -> None:
    if context_length is not None and n_prompt + n_answer > context_length:
        raise AttributionError(
            f"Prompt and answer have {n_prompt + n_answer} tokens, the model reads {context_length}: "
            "explain the first k response tokens or shorten the report."
        )
