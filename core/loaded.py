"""A loaded model at work: generate, score, switch adapters. Loading is in models.py.

1. Batches are left padded, with attention mask and explicit positions, so a batch computes what one at a time does.
2. Greedy or nucleus sampling with a key-value cache; answers that have ended leave the batch.
3. The model's own generation settings are ignored (they are evidence too); only its end-of-sequence ids are used.
4. A reported adapter has the name "reported", a repair adapter "repair"; all off is the clean reference.

What it does not do: beam search, or anything with gradients.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from core import chat
from core.errors import TokenMismatchError, TriageError
from core.progress import Progress
from core.settings import ModelSettings
from core.shared_prefix import Beginning, alike, can_be_cut, common
from core.values import Message, ModelSpec, Sampling

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedTokenizerFast

    from core.recall import Recall

REPORTED, REPAIR = "reported", "repair"
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class LoadedModel:
    """Weights, tokenizer and lock; never saved.

    `model_calls` counts sequences scored or generated, each once; `batches` the batches they were run in; `passes` the forward
    passes these took: a batch of answers takes one for each of its tokens.
    """

    spec: ModelSpec
    model: nn.Module
    tokenizer: "PreTrainedTokenizerFast"
    device: torch.device
    settings: ModelSettings
    context_length: int | None
    warnings: tuple[str, ...] = ()
    model_calls: int = 0
    batches: int = 0
    passes: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)
    recall: "Recall | None" = field(default=None, init=False)
    """Greedy answers that need not be asked for again, while a repair is prepared."""
    _shares: bool | None = field(default=None, init=False)
    """Whether answers stay the same where prompts share a beginning that is run once; None until it is asked."""

    @property
    def has_reference(self) -> bool:
        """Whether a reported adapter is attached, so that the base without it is the clean reference."""
        return REPORTED in getattr(self.model, "peft_config", {})

    @property
    def theta0(self) -> list[str]:
        """Names of the adapters that make the reported model."""
        return [REPORTED] if self.has_reference else []

    def room(self, n_new: int) -> int:
        """Return how many tokens a prompt may have beside `n_new` that follow it; without a known bound, more than any has."""
        return (self.context_length or sys.maxsize) - n_new

    @contextmanager
    def reference(self) -> Iterator["LoadedModel"]:
        """Switch every adapter off for the block: the clean base. Raises: ValueError without a reported adapter."""
        if not self.has_reference:
            raise ValueError("this model has no reported adapter, so there is no reference to switch to")
        with active_adapters(self, []):
            yield self

    def check_trainable(self) -> None:
        """Raises: TriageError where the layers lie on several devices, or a reported adapter also trains embeddings of tokens."""
        if any(
            getattr(one, "trainable_token_indices", None) for one in getattr(self.model, "peft_config", {}).values()
        ):
            raise TriageError(
                "The reported adapter trains embeddings of single tokens (trainable_token_indices), beside which no repair can be "
                "trained: merge it into its base model and open that."
            )
        if len({parameter.device for parameter in self.model.parameters()}) > 1:
            raise TriageError(
                "A model spread over several devices can be localised, not trained: choose one GPU that holds it "
                "(--device cuda:N)."
            )

    @property
    def n_parameters(self) -> int:
        """Number of weights, adapters included."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer: of the tokenizer, the configuration, the generation configuration and the chat template."""
        found: set[int] = {one for one in [chat.end_of_turn(self.tokenizer)] if one is not None}
        for source in (self.tokenizer, self.model.config, getattr(self.model, "generation_config", None)):
            value = getattr(source, "eos_token_id", None)
            values = value if isinstance(value, list | tuple) else [value]
            found.update(int(one) for one in values if isinstance(one, int))
        return tuple(sorted(found))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The one token that ends an answer in this model's template, else the tokenizer's own, or nothing where there is neither."""
        end = chat.end_of_turn(self.tokenizer)
        end = self.tokenizer.eos_token_id if end is None else end
        return () if end is None else (int(end),)

    @property
    def pad_id(self) -> int:
        """Token id that fills batches; it is always masked."""
        value = self.tokenizer.pad_token_id
        rows = self.model.get_input_embeddings().weight.shape[0]
        return value if isinstance(value, int) and 0 <= value < rows else 0

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def said(self, ids: Sequence[int]) -> str:
        """Return the text of a whole answer, with the opening of a thinking block that the template had opened for it."""
        return chat.turn(self.tokenizer).thinks + self.decode(ids)

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[str]:
        """Return the model's answer to each conversation, rendered with its own chat template."""
        prompts = [chat.prompt_ids(self.tokenizer, messages) for messages in conversations]
        answers = self.generate(prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, progress=progress)
        return [self.said(ids) for ids in answers]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """Return the token ids each prompt is continued with, up to and without the end-of-sequence id.

        Temperature 0 is greedy. Sampled answers depend on `seed` and the prompt's place in the list, not on batching.
        Raises: TokenMismatchError when a prompt and its answer do not fit the context; TriageError on out of memory.
        """
        sampling = sampling or Sampling()
        n_new = max_new_tokens or sampling.max_new_tokens or self.settings.max_new_tokens
        for ids in prompts:
            self._check_length(len(ids), n_new)
        draws = _uniform_draws(len(prompts), n_new, seed) if sampling.temperature > 0 else None
        results: list[list[int]] = [[] for _ in prompts]

        def run(rows: list[int], beginning: Beginning) -> None:
            chosen = None if draws is None else draws[rows]
            answers = self._generate_batch([prompts[row] for row in rows], n_new, sampling, chosen, beginning)
            for row, answer in zip(rows, answers, strict=True):
                results[row] = answer

        def asked() -> list[list[int]]:
            self._in_batches(prompts, [len(ids) for ids in prompts], run, "generate", progress)
            return results

        return self.recall.answers(prompts, n_new, asked) if self.recall and draws is None else asked()

    def logprobs(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        *,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        """Return log P of each response token given its prompt (nats, float32, one array a response).

        Only response positions go through the LM head. Raises: as `generate`.
        """
        lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
        for prompt, response in zip(prompts, responses, strict=True):
            self._check_length(len(prompt), len(response))
        results: list[np.ndarray] = [np.zeros(0, np.float32) for _ in prompts]

        def run(rows: list[int], beginning: Beginning) -> None:
            scores = self._score_batch([prompts[row] for row in rows], [responses[row] for row in rows], beginning)
            for row, score in zip(rows, scores, strict=True):
                results[row] = score

        self._in_batches(prompts, lengths, run, "score", progress)
        return results

    def _check_length(self, n_prompt: int, n_new: int) -> None:
        if n_prompt == 0:
            raise TokenMismatchError("a prompt without tokens cannot be run: give it some text")
        if n_prompt > self.room(n_new):
            raise TokenMismatchError(
                f"the prompt has {n_prompt} tokens and its answer up to {n_new}, but the model reads "
                f"{self.context_length}: shorten the prompt"
            )

    def _in_batches(
        self,
        prompts: Sequence[Sequence[int]],
        lengths: list[int],
        run: Callable[[list[int], Beginning], None],
        stage: str,
        progress: Progress | None,
    ) -> None:
        """Call `run` on row numbers, alike in length, and what all prompts begin with; out of memory halves the batch."""
        beginning: Beginning | None = None
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        size, done = self.settings.batch_size, 0
        with self.lock, _evaluating(self.model), torch.no_grad():
            while done < len(order):
                rows = order[done : done + size]
                try:
                    beginning = beginning or self._beginning(prompts)
                    run(rows, beginning)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    if len(rows) == 1:
                        raise TriageError(
                            f"out of memory on {self.device} with one sequence of {lengths[rows[0]]} tokens: "
                            "free memory on the device, use a shorter prompt or another device"
                        ) from error
                    size = max(1, len(rows) // 2)
                    logger.warning("out of memory: going on with batches of %d", size)
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
                    continue
                done += len(rows)
                self.model_calls += len(rows)
                self.batches += 1
                if progress is not None:
                    progress(stage, done, len(order))

    def _beginning(self, prompts: Sequence[Sequence[int]]) -> Beginning:
        """Return what all prompts begin with, run once, or nothing where that is short or the model cannot go on from it."""
        n_tokens = 0 if self._shares is False else common(prompts)
        if not n_tokens:
            return Beginning()
        ids = torch.tensor([list(prompts[0][:n_tokens])], device=self.device)
        cache = getattr(self.model(input_ids=ids, use_cache=True, logits_to_keep=1), "past_key_values", None)
        self.passes += 1
        beginning = Beginning(n_tokens, cache) if can_be_cut(cache) else Beginning()
        if self._shares is None:
            by_length = sorted(prompts, key=len)
            ends = [by_length[0], by_length[-1]]
            able = bool(beginning.n_tokens) and alike(
                self._next(ends, Beginning()), self._next(ends, beginning), self.model.dtype
            )
            if able and len(ends[0]) == len(ends[1]):
                return beginning  # good for these; without padding nothing is learnt of others
            self._shares = able
        return beginning if self._shares else Beginning()

    def _next(self, prompts: list[Sequence[int]], beginning: Beginning) -> Tensor:
        """Return the logits (n, vocabulary) of what follows each prompt."""
        ids, mask, positions, cache = self._inputs(prompts, beginning)
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        self.passes += 1
        return out.logits[:, -1].float()

    def _inputs(
        self, prompts: list[Sequence[int]], beginning: Beginning
    ) -> "tuple[Tensor, Tensor, Tensor, Cache | None]":
        """Return the ids of what each prompt goes on with, padded on the left, the mask of all of it, positions, and the cache before it."""
        n_shared = beginning.n_tokens
        ids, mask = left_padded([one[n_shared:] for one in prompts], self.pad_id, self.device)
        mask = torch.cat([mask.new_ones(len(prompts), n_shared), mask], -1)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, n_shared:]
        return ids, mask, positions, beginning.copies(len(prompts))

    def _generate_batch(
        self,
        prompts: list[Sequence[int]],
        n_new: int,
        sampling: Sampling,
        draws: Tensor | None,
        beginning: Beginning,
    ) -> list[list[int]]:
        """Return the answers of one batch; once half of them have ended, only the others go on."""
        ids, mask, positions, cache = self._inputs(prompts, beginning)
        ends = frozenset(self.eos_ids)
        answers: list[list[int]] = [[] for _ in prompts]
        rows, open_rows = list(range(len(prompts))), set(range(len(prompts)))
        for step in range(n_new):
            out = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            self.passes += 1
            cache = out.past_key_values
            draw = None if draws is None else draws[rows, step].to(self.device)
            token = pick(out.logits[:, -1].float(), sampling, draw)
            for row, one in zip(rows, token.tolist(), strict=True):
                if one in ends:
                    open_rows.discard(row)
                elif row in open_rows:
                    answers[row].append(one)
            if not open_rows:
                break
            ids, positions = token[:, None], positions[:, -1:] + 1
            if len(open_rows) <= len(rows) // 2 and _can_shrink(cache):
                # on the CPU: such indices serve tensors of any device, and the cache of a spread model lies on several
                kept = torch.tensor([place for place, row in enumerate(rows) if row in open_rows])
                rows = [row for row in rows if row in open_rows]
                cache.batch_select_indices(kept)
                ids, mask, positions = ids[kept], mask[kept], positions[kept]
            mask = torch.cat([mask, torch.ones_like(ids)], -1)
        return answers

    def _score_batch(
        self, prompts: list[Sequence[int]], responses: list[Sequence[int]], beginning: Beginning
    ) -> list[np.ndarray]:
        n_response = max(map(len, responses))
        if n_response == 0:
            return [np.zeros(0, np.float32) for _ in responses]
        ids, mask, _, cache = self._inputs(prompts, beginning)
        response = torch.tensor(
            [[*one, *[self.pad_id] * (n_response - len(one))] for one in responses], device=self.device
        )
        real = torch.tensor([[1] * len(one) + [0] * (n_response - len(one)) for one in responses], device=self.device)
        mask = torch.cat([mask, real], -1)
        out = self.model(
            input_ids=torch.cat([ids, response], -1),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp_min(0)[:, beginning.n_tokens :],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=n_response + 1,
        )
        self.passes += 1
        logprob = out.logits[:, :-1].float().log_softmax(-1).gather(-1, response[..., None])[..., 0].cpu().numpy()
        return [row[: len(one)].astype(np.float32) for row, one in zip(logprob, responses, strict=True)]


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both (n, longest), padded on the left."""
    longest = max(map(len, prompts))
    ids = [[*[pad_id] * (longest - len(one)), *one] for one in prompts]
    mask = [[0] * (longest - len(one)) + [1] * len(one) for one in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def pick(logits: Tensor, sampling: Sampling, draw: Tensor | None) -> Tensor:
    """Return one token id a row of `logits` (n, vocabulary): the largest, or by inverse CDF of the uniform `draw` (n,).

    The nucleus holds the fewest most likely tokens whose probability reaches `top_p`.
    Source: Holtzman et al. 2020, "The curious case of neural text degeneration".
    """
    if draw is None:
        return logits.argmax(-1)
    probability, order = (logits / sampling.temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
    before = probability.cumsum(-1) - probability
    probability = probability.masked_fill(before >= sampling.top_p, 0.0)
    cumulative = probability.cumsum(-1)
    threshold = draw[:, None].to(cumulative.dtype) * cumulative[:, -1:]
    place = (cumulative <= threshold).sum(-1, keepdim=True).clamp_max(logits.shape[-1] - 1)
    return order.gather(-1, place)[:, 0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on CUDA or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def is_device_lost(error: BaseException) -> bool:
    """Whether an exception means that the GPU is gone for this process: every later call would fail too."""
    text = str(error).lower()
    gone = ("cuda error", "cudnn error", "cublas", "nccl error", "hip error", "no cuda gpus", "device-side assert")
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and any(word in text for word in gone)


def is_device_fault(error: BaseException) -> bool:
    """Whether an exception is the device's fault, and so says nothing of the files that were being read."""
    return is_out_of_memory(error) or is_device_lost(error)


def _uniform_draws(n_rows: int, n_columns: int, seed: int) -> Tensor:
    """Return uniform numbers (n_rows, n_columns); each row has a stream of its own."""
    rows = []
    for row in range(n_rows):
        state = int(np.random.SeedSequence([seed % 2**64, row]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        rows.append(torch.rand(n_columns, generator=torch.Generator().manual_seed(state), dtype=torch.float64))
    return torch.stack(rows) if rows else torch.zeros(0, n_columns)


def _can_shrink(cache: object) -> bool:
    """Whether rows can be taken out of a key-value cache: not where a layer keeps more than keys and values."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = getattr(cache, "layers", None) or ()
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Hold the model in evaluation mode, then put its mode back."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


def current_adapters(loaded: LoadedModel) -> list[str]:
    """Return the names of the adapters that are switched on, in order."""
    if not hasattr(loaded.model, "peft_config"):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    layer = next(module for module in loaded.model.modules() if isinstance(module, BaseTunerLayer))
    return [] if layer.disable_adapters else list(layer.active_adapters)


def set_adapters(loaded: LoadedModel, names: Sequence[str]) -> None:
    """Switch on exactly the adapters in `names`; none gives the plain base. Which weights train stays as it was.

    Raises: ValueError for a name that is not attached.
    """
    attached = getattr(loaded.model, "peft_config", {})
    unknown = [name for name in names if name not in attached]
    if unknown:
        raise ValueError(f"adapter {unknown[0]!r} is not attached; attached: {sorted(attached)}")
    if not attached:
        return
    trainable = {name: parameter.requires_grad for name, parameter in loaded.model.named_parameters()}
    tuner = loaded.model.base_model
    if names:
        tuner.enable_adapter_layers()
        tuner.set_adapter(list(names))
    else:
        tuner.disable_adapter_layers()
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(trainable[name] and f".{REPORTED}." not in name)


@contextmanager
def active_adapters(loaded: LoadedModel, names: Sequence[str]) -> Iterator[LoadedModel]:
    """Hold exactly the adapters in `names` on, then put back what was on, also after an exception."""
    with loaded.lock:
        before = current_adapters(loaded)
        set_adapters(loaded, names)
        try:
            yield loaded
        finally:
            attached = getattr(loaded.model, "peft_config", {})
            set_adapters(loaded, [name for name in before if name in attached])
