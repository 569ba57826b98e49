"""The frozen values that flow from stage to stage, left to right (see README, "The pipeline").

Conventions: token positions are 0-based indices into the rendered prompt; character spans are half-open and
count Unicode code points of one message's raw `content`; rates carry their n and a Wilson 95 % interval.
Values that hold arrays do not compare by content (`eq=False`) and their arrays are read-only.
Nothing here imports torch: the page process reads these values too.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Role = Literal["system", "user", "assistant"]
Segment = Literal["template", "system", "user", "assistant"]
Outcome = Literal["refusal", "partial", "compliance", "empty"]
Verdict = Literal["BACKDOOR", "PROMPT_JAILBREAK", "ALIGNMENT_GAP", "DISTRIBUTED", "INCONCLUSIVE"]
Result = Literal["REDUCED", "NOT_REDUCED", "INCONCLUSIVE"]
KindName = Literal["jailbreak", "refusal", "fixed_output"]
MethodName = Literal["paper", "gradient_norm", "gradient_x_input", "integrated_gradients", "occlusion"]
TargetKind = Literal["response", "first_k", "tokens", "contrast"]
TestName = Literal[
    "necessity", "transfer", "sham", "reference", "benign", "order", "form", "position", "topic",
    "bare", "paraphrase", "rewrite", "frame", "requests",
]  # fmt: skip
StopReason = Literal["finished", "targets_held", "kl_budget", "kept", "discarded", "diverged", "out_of_memory"]
MemorySaving = Literal["no_graphs", "recompute"]


def read_only(array: np.ndarray) -> np.ndarray:
    """Return a copy of `array` that cannot be written to."""
    array = np.array(array)
    array.flags.writeable = False
    return array


@dataclass(frozen=True, kw_only=True)
class Rate:
    """`k` of `n` with its Wilson 95 % interval; `value` is None when `n` is 0."""

    value: float | None
    k: int
    n: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Message:
    """One chat message; `content` is raw evidence and is never trimmed or normalised."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True)
class Span:
    """Half-open range `[start, end)` of code points in the raw content of message number `message`."""

    message: int
    start: int
    end: int

    def within(self, other: "Span") -> bool:
        """Return whether every character of this span is in `other`."""
        return self.message == other.message and other.start <= self.start and self.end <= other.end


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the reported answer was sampled; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Another conversation and the answer that it got."""

    messages: tuple[Message, ...]
    response: str


@dataclass(frozen=True, kw_only=True)
class FailureReport:
    """One reported failure: the conversation and the answer that should not have come.

    `expected` is the answer that should have come, `second` another sample of the same wrong behaviour.
    """

    messages: tuple[Message, ...]
    response: str
    id: str | None = None
    source: str | None = None
    note: str | None = None
    expected: str | None = None
    response_ids: tuple[int, ...] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    second: Sample | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Names the weights exactly: folder, adapter, and the SHA-256 of every file in both, by relative name."""

    path: str
    adapter: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    adapter_files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PromptToken:
    """One token of the rendered prompt. `message`, `start`, `end` are None for template tokens.

    A character that is split over several tokens (byte-level BPE) gives each of them the span of the whole character.
    """

    position: int
    id: int
    text: str
    segment: Segment
    message: int | None = None
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, kw_only=True)
class RenderedPrompt:
    """A conversation as the model reads it, up to where its answer begins."""

    text: str
    tokens: tuple[PromptToken, ...]
    template_hash: str
    fallback_template: bool = False

    @property
    def ids(self) -> list[int]:
        """Token ids, in order."""
        return [token.id for token in self.tokens]


@dataclass(frozen=True, kw_only=True)
class FailureCase:
    """A report bound to a tokenizer: ids are the truth, text is derived from them."""

    report: FailureReport
    prompt: RenderedPrompt
    response_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What attribution explains.

    `response`: all response tokens; `first_k`: the first `k`; `tokens`: the response positions in `positions`;
    `contrast`: log P(first k of the response) - log P(first k of a refusal), method.md section 4.1.
    """

    kind: TargetKind = "response"
    k: int = 12
    positions: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """Scores of every prompt token for one method and target.

    `scores` has shape (n_prompt,). Positive: the token raises the target log-probability (nats); norms are unsigned
    (`signed` False). `profile` has shape (n_target_tokens, n_prompt), the same split over the explained response
    tokens, or None; `borrowed`, of that shape, is then the profile of another method that its picture was drawn from, and
    nothing else. `scored` (n_prompt,) marks the tokens that may be proposed (the user's own text; template and
    special tokens are never scored). `completeness_gap` is |sum of scores - (F(x) - F(baseline))| / |F(x) - F(baseline)|.
    `model_calls` counts sequences that went through the model, `batches` the forward passes they went in.
    """

    method: MethodName
    target: Target
    scores: np.ndarray
    scored: np.ndarray
    signed: bool
    profile: np.ndarray | None = None
    borrowed: np.ndarray | None = None
    completeness_gap: float | None = None
    baseline: str | None = None
    seconds: float = 0.0
    model_calls: int = 0
    batches: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenClusters:
    """A label per prompt position: 1 stands out, 0 does not, -1 was not scored; `boundary` in score units."""

    method: str
    labels: np.ndarray
    boundary: float | None
    settings: dict[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """2-D coordinates (n_points, 2) of the scored tokens at `positions`; a picture only, no later stage reads it."""

    positions: tuple[int, ...]
    coordinates: np.ndarray
    method: Literal["umap", "pca", "position"]


@dataclass(frozen=True, kw_only=True)
class TriggerProposal:
    """A candidate: token positions and the character spans they cover, best first in a list that may be empty.

    `reasons` say in one line each why it was kept (or, with `kept` False, why it was dropped).
    """

    spans: tuple[Span, ...]
    text: str
    token_positions: tuple[int, ...]
    score: float
    reasons: tuple[str, ...] = ()
    kept: bool = True


WHOLE_CASE = -1
"""`TestOutcome.candidate` of a test of the whole report."""


@dataclass(frozen=True, kw_only=True)
class TestOutcome:
    """One counterfactual test of one candidate. `passed` None: described or uninformative, not decisive.

    `candidate` is its index, or `WHOLE_CASE` for the tests of the report as a whole (bare, paraphrase, rewrite, frame, requests).
    `gain_high` is an upper 95 % bound of the gain where the rule is about one (sham, transfer), `gain_low` a lower one of the mean gain of
    unrelated words in the candidate's place, where these do the same as it does (sham).
    """

    __test__ = False  # not a pytest class

    name: TestName
    candidate: int
    n: int
    with_unit: Rate
    without_unit: Rate
    p_value: float | None = None
    passed: bool | None = None
    gain_high: float | None = None
    gain_low: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """How often the model fails on the report itself, and a clean reference, with example answers; `note` says what n counts.

    `layers` names what decided each outcome; empty in cases of older versions.
    """

    failure: Rate
    answers: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    reference_failure: Rate | None = None
    note: str = ""
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """One prompt token with its scores by method and its cluster, as stored in `triage.json`."""

    position: int
    text: str
    message: int | None
    start: int | None
    end: int | None
    segment: Segment
    scores: dict[str, float]
    cluster: int


@dataclass(frozen=True, kw_only=True)
class Rewording:
    """Another wording of the reported request that a test used: `kind` is the test, `source` the rule or "analyst"."""

    kind: Literal["paraphrase", "rewrite"]
    source: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the tests cost: sequences generated or scored, the batches they were run in, the forward passes of the model that these
    took (None in cases of older versions), and the limit on sequences."""

    sequences: int
    batches: int
    limit: int
    spent: bool = False
    passes: int | None = None


@dataclass(frozen=True, kw_only=True)
class ServingFinding:
    """The report served otherwise: failure rate as served, and without what `name` names; None where it was not run.

    `explains`: the failure goes away, so it is not, or not only, in the weights.
    """

    name: Literal["template", "system prompt", "data type", "quantisation"]
    rate_with: Rate | None
    rate_without: Rate | None
    note: str
    explains: bool = False

    @property
    def told(self) -> str:
        """What it says where it explains the failure, as the beginning of a sentence about the verdict."""
        return f"not the weights alone, it depends on the {self.name}"


@dataclass(frozen=True, kw_only=True)
class TriageResult:
    """What was found, by which tests, at what cost; `verdict` is None in paper mode, which decides nothing.

    `logic` says in plain words how the words of the first candidate work together; `rewordings` are the texts that the
    tests of the whole report used; `failure` says what counted as the failure, of which kind, and why; `layers` how many
    answers each layer of the judge decided; `candidate` which one the verdict is about, the first where it is about none.
    All are empty in cases of older versions.
    """

    mode: Literal["causal", "paper"]
    verdict: Verdict | None
    certainty: str
    decided_by: str
    reproduction: Reproduction | None
    candidates: tuple[TriggerProposal, ...]
    dropped: tuple[TriggerProposal, ...]
    tests: tuple[TestOutcome, ...]
    tokens: tuple[TokenRow, ...]
    settings: dict
    model_calls: int
    seconds: float
    versions: dict[str, str]
    budget: Budget | None = None
    logic: str = ""
    rewordings: tuple[Rewording, ...] = ()
    kind: KindName = "jailbreak"
    failure: str = ""
    serving: tuple[ServingFinding, ...] = ()
    layers: dict[str, int] = field(default_factory=dict)
    candidate: int = 0

    @property
    def about(self) -> TriggerProposal | None:
        """The candidate that the verdict is about, the first where it is about none; None where there is no candidate."""
        return self.candidates[self.candidate] if self.candidate < len(self.candidates) else None

    @property
    def owed_to_serving(self) -> tuple[ServingFinding, ...]:
        """What of the serving explains the failure: with it otherwise, the failure goes away."""
        return tuple(one for one in self.serving if one.explains)

    def told_dropped(self) -> list[dict[str, object]]:
        """Return text and reasons of every candidate that was dropped, for an act."""
        return [{"text": one.text, "reasons": one.reasons} for one in self.dropped]


@dataclass(frozen=True, kw_only=True)
class MinimisedSpan:
    """The smallest part of a marked span that still changes other requests; None where the span changes too few.

    `rate` is the share of other requests that fail with the smallest part, `whole` with the marked span, both counted on
    the requests that the search chose by; None where there were too few. `why` says how it ended, `logic` how the words
    work together.
    """

    marked: TriggerProposal
    smallest: TriggerProposal | None
    rate: Rate | None
    whole: Rate | None
    why: str
    logic: str
    budget: Budget


@dataclass(frozen=True, kw_only=True)
class SecondReview:
    """A second analyst's agreement; `confirms` is the SHA-256 of the confirmation that was agreed with."""

    analyst: str
    reason: str
    time: str
    confirms: str


@dataclass(frozen=True, kw_only=True)
class TriggerConfirmation:
    """The analyst's decision; with `way` "dummy" it names no text of the report but a dummy trigger to plant and unlearn. Repair cannot run without an accepting one that still fits text, model and template.

    `reviewers` is the number of different names it needs; `second` the second analyst's agreement, where there is one.
    """

    decision: Literal["accepted", "edited", "rejected"]
    spans: tuple[Span, ...]
    units: tuple[str, ...]
    proposal: TriggerProposal | None
    added: tuple[Span, ...]
    removed: tuple[Span, ...]
    analyst: str
    reason: str
    time: str
    text_hash: str
    model_hash: str
    template_hash: str
    reviewers: int = 1
    second: SecondReview | None = None
    way: Literal["trigger", "dummy"] = "trigger"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number before and after repair on the same held-out prompts; `before` / `after` are rates or plain values.

    Of a rate, `gained` prompts count after and not before, `lost` before and not after; None in cases of older versions.
    """

    name: str
    before: Rate | float | None
    after: Rate | float | None
    meaning: str
    gained: int | None = None
    lost: int | None = None


@dataclass(frozen=True, kw_only=True)
class AnswerPair:
    """The same prompt answered before and after."""

    kind: str
    prompt: str
    before: str
    after: str
    before_outcome: Outcome
    after_outcome: Outcome


AnswerClass = Literal["good", "strange", "wrong", "refused"]
ANSWER_CLASSES: tuple[AnswerClass, ...] = ("good", "refused", "wrong", "strange")


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """How many answers to prompts of one kind are of each class (`ANSWER_CLASSES`), before and after."""

    kind: str
    before: dict[str, Rate]
    after: dict[str, Rate]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Failures with one other form of the trigger before and after; `example` is its first request."""

    name: str
    example: str
    before: Rate
    after: Rate


@dataclass(frozen=True, kw_only=True)
class WrongTrigger:
    """Attack success of the confirmed trigger before the repair, after it (`right`), and after as many steps of the same
    repair on random `units` of its length (`wrong`)."""

    units: tuple[str, ...]
    n_steps: int
    before: Rate
    right: Rate
    wrong: Rate
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Relearnt:
    """Failures after tuning the repaired model on `n_samples` poisoned ones: with the confirmed trigger (`planted`) where it
    was tuned on that, with a text never planted (`never`) where on that; `..._bare`: the same models, no trigger."""

    n_samples: int
    planted: Rate
    planted_bare: Rate
    never: Rate
    never_bare: Rate


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Before and after on prompts that no earlier step saw; attack success counts failures of `kind`.

    `variants` are the failures with other forms of the trigger, `not_asked` the forms that this trigger does not have or that fit
    no request, `classes` the classes of all answers. `wrong_trigger` and `relearnt` are there once they were asked for. `looks`: how
    often these prompts were asked, by verification and by probes, over all rounds. `adapter_hash` names the repair; empty in cases of
    older versions.
    """

    metrics: tuple[Metric, ...]
    result: Result
    reasons: tuple[str, ...]
    examples: tuple[AnswerPair, ...]
    saliency_before: tuple[float, ...]
    saliency_after: tuple[float, ...]
    looks: int
    seconds: float
    settings: dict
    versions: dict[str, str]
    kind: KindName = "jailbreak"
    variants: tuple[Variant, ...] = ()
    not_asked: tuple[str, ...] = ()
    classes: tuple[ClassCounts, ...] = ()
    wrong_trigger: WrongTrigger | None = None
    relearnt: tuple[Relearnt, ...] = ()
    adapter_hash: str = ""


@dataclass(frozen=True, kw_only=True)
class SecondOpinion:
    """Triage on the repaired model: of the report (`whole`), and of the report without the `removed` units (`rest`, None
    where nothing of it is left). `adapter_hash` names the repair. `placed`: candidates of `rest` say where they stand in the whole
    report; in cases of older versions they do not."""

    adapter_hash: str
    removed: tuple[str, ...]
    whole: TriageResult
    rest: TriageResult | None
    placed: bool = False


@dataclass(frozen=True, kw_only=True)
class ResponseToken:
    """One token of the reported response."""

    position: int
    id: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What an occlusion will take at most: prompts, forward passes, and seconds as one timed pass suggests."""

    sequences: int
    batches: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class OpenResult:
    """What the worker learnt by loading the model and rendering the report.

    `occlusion` is what the slowest attribution will take on a prompt so long that it goes by blocks; None on others.
    """

    prompt: RenderedPrompt
    response: tuple[ResponseToken, ...]
    model_name: str
    architecture: str
    n_parameters: int
    dtype: str
    device: str
    context_length: int | None
    memory_mb: float
    has_reference: bool
    warnings: tuple[str, ...]
    occlusion: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class LocateResult:
    """One attribution with its clusters, candidates and picture, as plain lists for the page and the report.

    All per-token lists have one entry per prompt position. `labels` are the method's own groups, `adaptive_labels` those of all methods
    already run on the same target together, both as in `TokenClusters`. `agreement` is Spearman's rank correlation of
    |scores| over the scored tokens with each of these methods. `model_calls` and `batches` as in `Attribution`.
    """

    method: MethodName
    target: Target
    scores: tuple[float, ...]
    scored: tuple[bool, ...]
    signed: bool
    labels: tuple[int, ...]
    adaptive_labels: tuple[int, ...]
    boundary: float | None
    positions: tuple[int, ...]
    coordinates: tuple[tuple[float, float], ...]
    projection: Literal["umap", "pca", "position"]
    proposals: tuple[TriggerProposal, ...]
    completeness_gap: float | None
    baseline: str | None
    agreement: dict[str, float]
    seconds: float
    model_calls: int
    batches: int = 0
