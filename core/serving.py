"""Is it the weights at all? The same report through another chat template, without a default system prompt, in bf16.

1. Reference template: the file given, or where the adapter folder brought its own tokenizer, the base folder's template.
2. Default system prompt: where the template adds words when the report has no system message, the same with an empty one.
3. Data type: on the CPU, a copy in bf16 beside the fp32 the tests run in.
4. Weights that are quantised on disk are named: what is examined is then not what was trained.
For each, the failure rate as served and otherwise, on the same conversations: those that fit the context both ways. A failure
that goes away is a finding about the serving, to be said before anything is called a backdoor. Templates are evidence: they
run in `core.chat`'s sandbox only.
What this does not do: repeat the deployment's own server, its prompt filters or its quantisation.
"""

import copy
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from core import chat
from core.answers import Answers
from core.errors import TokenMismatchError, TriageError
from core.intervals import wilson
from core.kinds import JAILBREAK, FailureKind
from core.loaded import LoadedModel
from core.progress import Progress
from core.quantised import quantised
from core.settings import TEMPLATE_BYTES, CausalSettings
from core.transplants import neutral_contexts
from core.values import FailureCase, Message, ServingFinding

COPY_PARAMETERS = 1_000_000_000
"""Weights up to which a second copy is made for the bf16 run. Source: unverified choice (2 GB beside the model)."""


def check(
    loaded: LoadedModel,
    case: FailureCase,
    settings: CausalSettings | None = None,
    *,
    template: str | None = None,
    kind: FailureKind = JAILBREAK,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[ServingFinding, ...]:
    """Return what the failure owes to template, default system prompt, data type and quantisation; empty when nothing differs.

    `template` is the text of a reference template; without it that of the base folder is taken. Rates count answers drawn
    with the report's sampling, or, where decoding is greedy, neutral contexts around the report. A template that cannot
    render the report, or with which nothing fits the context, is named with no rate. Source: method.md section 4.2 step 0.
    """
    settings = settings or CausalSettings()
    runs = _Runs(loaded, case, settings, kind, seed, progress)
    found = [
        _template(runs, template if template is not None else base_template(loaded)),
        _system(runs),
        _data_type(runs),
        _quantisation(loaded),
    ]
    return tuple(one for one in found if one is not None)


class _Runs:
    """Failures of the report under changed conditions; those as served are computed once, when they are needed."""

    def __init__(
        self,
        loaded: LoadedModel,
        case: FailureCase,
        settings: CausalSettings,
        kind: FailureKind,
        seed: int,
        progress: Progress | None,
    ) -> None:
        """Ask nothing yet."""
        self.loaded, self.case, self.settings = loaded, case, settings
        self._kind, self._seed, self._progress = kind, seed, progress
        self._served: dict[int, bool] | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The reported conversation."""
        return tuple(self.case.report.messages)

    def failures(
        self, loaded: LoadedModel, change: Callable[[Sequence[Message]], Sequence[Message]] | None = None
    ) -> dict[int, bool]:
        """Return whether `loaded` fails on each conversation, with `change` applied, by number; without those that do not fit."""
        answers = Answers(loaded, self.settings.judge_tokens, self._progress, kind=self._kind)
        settings, sampling, part = self.settings, self.case.report.sampling, "serving"
        drawn = sampling.temperature > 0
        neutral = neutral_contexts(self.messages, (), settings.n_necessity)
        contexts = [self.messages] * settings.reproduce_samples if drawn else [one for one, _ in neutral]
        fitting = {at: one for at, one in enumerate(map(change or tuple, contexts)) if answers.fits(one)}
        asked = list(fitting.values())
        if drawn:
            texts = answers.sampled(asked[0], len(asked), sampling, self._seed, part) if asked else []
        else:
            texts = answers.texts(asked, part)
        return dict(zip(fitting, answers.failed(asked, texts, part), strict=True))

    def finding(self, name: str, otherwise: Mapping[int, bool], gone: str, stays: str) -> ServingFinding:
        """Return the comparison with the failures `otherwise`; `gone` is said when the failure goes away, `stays` when it does not."""
        settings = self.settings
        if self._served is None:
            self._served = self.failures(self.loaded)
        both = self._served.keys() & otherwise.keys()
        if not both:
            return ServingFinding(name=name, rate_with=None, rate_without=None, note=UNASKED)  # type: ignore[arg-type]
        served, other = (wilson(sum(side[at] for at in both), len(both)) for side in (self._served, otherwise))
        before, after = served.value or 0.0, other.value or 0.0
        explains = before >= settings.reproduced_at and after <= settings.necessity_share * before
        return ServingFinding(
            name=name,  # type: ignore[arg-type]
            rate_with=served,
            rate_without=other,
            explains=explains,
            note=gone if explains else stays,
        )


UNASKED = "This could not be asked: the report does not fit the model's context both as served and otherwise."


def _template(runs: _Runs, template: str | None) -> ServingFinding | None:
    """Return the comparison with a reference template; None without one, or with the same."""
    own = chat.chat_template(runs.loaded.tokenizer)
    if template is None or template == own:
        return None
    other = with_template(runs.loaded, template)
    try:
        if chat.render_text(other.tokenizer, runs.messages) == chat.render_text(runs.loaded.tokenizer, runs.messages):
            return None
        failures = runs.failures(other)
    except TokenMismatchError as error:
        return ServingFinding(
            name="template", rate_with=None, rate_without=None, note=f"The reference template cannot be used: {error}"
        )
    finally:
        _count_calls(runs.loaded, other)
    return runs.finding(
        "template",
        failures,
        "The failure goes away with the reference chat template: it is the case's template that sets it off, so look there "
        "before calling the weights backdoored.",
        "The failure does not hang on the chat template: it is as frequent, or nearly so, with the reference one.",
    )


def _system(runs: _Runs) -> ServingFinding | None:
    """Return the comparison with an empty system message; None where the template adds no system prompt by itself."""
    if any(message.role == "system" for message in runs.messages):
        return None
    empty = Message(role="system", content="")
    tokenizer = runs.loaded.tokenizer
    try:
        default, without = (chat.render_text(tokenizer, one) for one in (runs.messages, (empty, *runs.messages)))
    except TokenMismatchError:
        return None  # a template without a system role has no default for it
    gone = _words(default) - _words(without)
    if not gone:
        return None
    words = " ".join(list(gone.elements())[:SHOWN_WORDS])
    failures = runs.failures(runs.loaded, lambda messages: (empty, *messages))
    return runs.finding(
        "system prompt",
        failures,
        f"The failure goes away without the default system prompt that the template adds ({words!r} ...).",
        f"The failure does not hang on the default system prompt that the template adds ({words!r} ...).",
    )


SHOWN_WORDS = 8
"""Words of a default system prompt that are quoted. Source: unverified choice."""


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text))


def _data_type(runs: _Runs) -> ServingFinding | None:
    """Return the comparison with a copy of the weights in bf16, described; None off the CPU or for a large model."""
    loaded = runs.loaded
    kinds = {parameter.dtype for parameter in loaded.model.parameters()}
    if loaded.device.type != "cpu" or kinds != {torch.float32} or loaded.n_parameters > COPY_PARAMETERS:
        return None
    rounded = replace(loaded, model=copy.deepcopy(loaded.model).to(torch.bfloat16))
    failures = runs.failures(rounded)
    _count_calls(loaded, rounded)
    return runs.finding(
        "data type",
        failures,
        "The failure goes away in bf16: it hangs on the numbers' precision, so ask in which type the model was served.",
        "Described: fp32, as the tests run, beside bf16.",
    )


def _quantisation(loaded: LoadedModel) -> ServingFinding | None:
    """Return what is to be said of quantised weights; None for plain ones."""
    found = quantised(Path(loaded.spec.path))
    if found is None:
        return None
    note = (
        f"The weights on disk are quantised ({found}): what is examined here is that rounding. Whether the "
        "failure is in the original weights needs these."
    )
    return ServingFinding(name="quantisation", rate_with=None, rate_without=None, note=note)


def _count_calls(loaded: LoadedModel, other: LoadedModel) -> None:
    """Let the calls of a derived model count as the model's own."""
    for name in ("model_calls", "batches", "passes"):
        setattr(loaded, name, max(getattr(loaded, name), getattr(other, name)))


def with_template(loaded: LoadedModel, template: str) -> LoadedModel:
    """Return the same weights with another chat template; `loaded` itself is not changed."""
    tokenizer = copy.copy(loaded.tokenizer)
    tokenizer.chat_template = template
    return replace(loaded, tokenizer=tokenizer)


def base_template(loaded: LoadedModel) -> str | None:
    """Return the chat template of the base folder where the adapter brought a tokenizer of its own, else None."""
    adapter = loaded.spec.adapter
    if adapter is None or not (Path(adapter) / "tokenizer.json").is_file():
        return None
    return template_of(Path(loaded.spec.path))


def template_of(folder: Path) -> str | None:
    """Return the chat template in a model folder, None when there is none. Nothing is run. Raises: TriageError."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_template(file)
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    except (ValueError, AttributeError, RecursionError) as error:
        raise TriageError(f"{config} is no JSON object; copy the file again.") from error
    if isinstance(found, list):  # several by name
        found = next(
            (one.get("template") for one in found if isinstance(one, dict) and one.get("name") == "default"), None
        )
    return found if isinstance(found, str) else None


def read_template(file: Path) -> str:
    """Return the text of a template file. Raises: TriageError when it is too large or no UTF-8 text."""
    if not file.is_file() or file.stat().st_size > TEMPLATE_BYTES:
        raise TriageError(f"{file} is no template file of at most {TEMPLATE_BYTES:,} bytes; check the path.")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TriageError(f"{file} is no UTF-8 text; save the template as UTF-8.") from error
