"""Logits at response positions only: transformer once, LM head on the rows that count.

A batch of prompt + response sequences is padded on the right (a causal model never looks there), goes through the base
transformer, and only the hidden states that predict response tokens go through the head, with the scaling and soft cap
of the model's configuration. Hidden states can be kept and turned into logits later: that is how a frozen teacher is
cached at a few kB a token, in memory or in a mapped file. What this does not do: choose adapters, or know about losses.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from core.errors import TriageError
from core.replay import Replay
from core.settings import RepairSettings
from core.shared_prefix import Beginning, can_be_cut, common
from core.team import Team

if TYPE_CHECKING:
    from core.loaded import LoadedModel

PROBE_TOLERANCE = 1e-3
"""Largest difference between the model's own logits and ours, as a share of their largest magnitude. Rounding alone stays
below 1e-5 in fp32; a missing scale or cap is above 1e-1. Source: unverified choice."""
PROBE_ROUNDING = 2.0
"""Steps of rounding that are allowed where the model computes in less than fp32 (a soft cap in bf16 rounds three times, one step at
most together). Source: unverified choice."""


@dataclass(frozen=True, kw_only=True)
class ScoredSequence:
    """One prompt with the response that is scored; both are token ids."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Hidden states of all response positions of a batch, sequence after sequence.

    `hidden` (n_rows, width) predicts `labels` (n_rows,); `owner` (n_rows,) is the sequence's place in the batch.
    """

    hidden: torch.Tensor
    labels: torch.Tensor
    owner: torch.Tensor
    n_tokens: int


def base_model(loaded: "LoadedModel") -> torch.nn.Module:
    """Return the transformers model inside `loaded`, adapters included, without PEFT's wrapper."""
    model = loaded.model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class ResponsePass:
    """Runs `loaded`, with whatever adapters are on, and gives logits of response positions.

    `chunk_rows`: rows of logits that are worked on at a time, so that they stay within the settings' `vocabulary_mb`.
    """

    def __init__(self, loaded: "LoadedModel", settings: RepairSettings | None = None) -> None:
        """Find transformer and head by structure and check once that together they give the model's own logits.

        Where they do not (an architecture that does more after its head), the whole model is run instead and "hidden
        states" are its logits: exact as well, at the memory of the vocabulary.
        """
        settings = settings or RepairSettings()
        self._loaded = loaded
        model = base_model(loaded)
        self._model = model
        self._transformer = model.base_model
        self._head = model.get_output_embeddings()
        config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        self._cap = getattr(config, "final_logit_softcapping", None)
        multiplier, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
        self._scale = float(multiplier or 1.0) / float(divisor or 1.0)
        self.chunk_rows = max(1, settings.vocabulary_mb * 2**20 // (4 * int(config.vocab_size)))
        self._teacher_bytes = settings.teacher_mb * 2**20
        self.split = self._head is not None and self._transformer is not model and self._agrees()
        self._body = self._transformer if self.split else model
        self.replay: Replay | None = None
        self._shares = True

    @property
    def tensors_at_once(self) -> int:
        """Fp32 tensors over the vocabulary that a chunk's losses hold at most (see `losses`), soft cap and casts included."""
        return 4 + 2 * (self._cap is not None) + (next(self._model.parameters()).dtype != torch.float32)

    def join(self, team: Team) -> None:
        """Run the transformer as one of the team's processes from now on; the adapter must be on it, trainable.

        A process alone on one GPU may replay its passes.
        """
        if team.n > 1 and not self.split:
            raise TriageError("This architecture computes more after its head, so several processes cannot share it.")
        self._body = team.prepare(self._model, self._body)
        self._shares = team.n == 1  # wrapped for several processes, it runs once a step
        if team.n == 1 and self.split and {one.device.type for one in self._body.parameters()} == {"cuda"}:
            self.replay = Replay(self._body)

    def _agrees(self) -> bool:
        """Return whether head(transformer(x)) is the model's own output on a short sequence."""
        ids = torch.arange(min(8, self._head.weight.shape[0]), device=self._loaded.device)[None]
        with torch.no_grad():
            own = self._model(input_ids=ids, use_cache=False).logits[0].float()
            ours = self._finish(self._transformer(input_ids=ids, use_cache=False)[0][0]).to(own.device)
        allowed = max(PROBE_TOLERANCE, PROBE_ROUNDING * torch.finfo(self._head.weight.dtype).eps)
        return bool((own - ours).abs().max() <= allowed * own.abs().max())

    def _finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits of hidden states: head, scaling, soft cap."""
        logits = self._head(hidden).float()
        if self._scale != 1.0:  # a product would be one more tensor over the vocabulary
            logits = logits * self._scale
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

    def rows(self, sequences: Sequence[ScoredSequence], *, replayed: bool = False, shared: bool = True) -> Rows:
        """Return the hidden states that predict the response tokens of `sequences`, from one forward pass.

        `replayed`: it may be a captured one (see `replay.Replay`: one pass a step). `shared`: what all prompts begin with may be run once,
        where nothing is captured; gradients pass through it. Not with layers that are recomputed, which would lengthen its cache again.
        """
        device = self._loaded.device
        full = [sequence.prompt_ids + sequence.response_ids for sequence in sequences]
        longest = max(map(len, full))
        ids = torch.full((len(full), longest), self._loaded.pad_id or 0, dtype=torch.long)
        for row, tokens in enumerate(full):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        ids = ids.to(device)
        states = self.replay.states(ids) if replayed and self.replay else None
        n_shared = 0
        if states is None:
            beginning = self._beginning([one.prompt_ids for one in sequences], ids) if shared else Beginning()
            n_shared = beginning.n_tokens
            before = (
                {"past_key_values": beginning.copies(len(full)), "use_cache": True}
                if n_shared
                else {"use_cache": False}
            )
            output = self._body(input_ids=ids[:, n_shared:], **before)
            states = output[0] if self.split else output.logits
        lengths = [len(sequence.response_ids) for sequence in sequences]
        owner = torch.repeat_interleave(torch.arange(len(full)), torch.tensor(lengths))
        place = torch.cat(
            [
                torch.arange(len(s.prompt_ids) - 1, len(s.prompt_ids) - 1 + n)
                for s, n in zip(sequences, lengths, strict=True)
            ]
        )
        labels = torch.tensor([token for sequence in sequences for token in sequence.response_ids], device=device)
        owner, place = owner.to(states.device), place.to(states.device) - n_shared
        self._loaded.model_calls += len(full)
        return Rows(
            hidden=states[owner, place], labels=labels.to(states.device), owner=owner, n_tokens=sum(map(len, full))
        )

    def _beginning(self, prompts: Sequence[Sequence[int]], ids: torch.Tensor) -> Beginning:
        """Return what all prompts begin with, run once; `ids` (n, longest) are of the whole sequences. Padding stands behind, so positions hold."""
        n_tokens = common(prompts) if self._shares else 0
        if not n_tokens:
            return Beginning()
        cache = getattr(self._body(input_ids=ids[:1, :n_tokens], use_cache=True), "past_key_values", None)
        self._shares = can_be_cut(cache)
        return Beginning(n_tokens, cache) if self._shares else Beginning()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits (n_rows, n_vocabulary) of hidden states from `rows`, also of kept ones."""
        return self._finish(hidden) if self.split else hidden.float()

    def teacher(
        self, sequences: Sequence[ScoredSequence], batch_size: int, folder: Path | None = None
    ) -> list[torch.Tensor]:
        """Return the hidden states of each sequence's response, (n_response, width) each, in the model's own dtype.

        Beyond the settings' `teacher_mb` they lie in a memory-mapped file in `folder`, if one is given; on systems that
        allow it the file has no name any more, so it is gone with the process, however that ends.
        """
        ends = torch.tensor([len(sequence.response_ids) for sequence in sequences], dtype=torch.long).cumsum(0).tolist()
        by_length = sorted(range(len(sequences)), key=lambda at: -_length(sequences[at]))
        store: torch.Tensor | None = None
        with torch.no_grad():
            for start in range(0, len(sequences), batch_size):
                batch = by_length[start : start + batch_size]
                hidden = self.rows([sequences[at] for at in batch]).hidden
                if store is None:
                    store = self._store(ends[-1], hidden, folder)
                for at, states in zip(
                    batch, hidden.split([len(sequences[at].response_ids) for at in batch]), strict=True
                ):
                    store[ends[at] - len(states) : ends[at]] = states
        return [] if store is None else list(store.tensor_split(ends[:-1]))

    def _store(self, n_rows: int, like: torch.Tensor, folder: Path | None) -> torch.Tensor:
        """Return room for `n_rows` rows like those of `like`: in its memory, or in a file."""
        width = like.shape[1]
        if folder is None or n_rows * width * like.element_size() <= self._teacher_bytes:
            return like.new_empty(n_rows, width)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"teacher-{os.getpid()}-{id(like)}.tmp"
        if hasattr(os, "posix_fallocate"):  # a mapped file grows as it is written: a full disk would end the process
            with open(path, "wb") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, n_rows * width * like.element_size())
                except OSError:
                    path.unlink()
                    raise
        store = torch.from_file(str(path), shared=True, size=n_rows * width, dtype=like.dtype).view(n_rows, width)
        with suppress(OSError):  # Windows keeps the name of a mapped file
            path.unlink()
        return store


def _length(sequence: ScoredSequence) -> int:
    return len(sequence.prompt_ids) + len(sequence.response_ids)
