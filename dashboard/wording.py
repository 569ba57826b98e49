"""Every sentence the page shows, but for step 4 (`wording_verdict.py`). Calm, short; numbers first; what to do when
something is wrong.

Constants for fixed text, functions for text about a result. What this does not do: decide anything.
"""

import math
from collections.abc import Iterable, Sequence

from core.events import RepairFinished
from core.links import Link
from core.repair_trace import RepairTrace
from core.values import (
    Estimate,
    LocateResult,
    OpenResult,
    Outcome,
    Rate,
    Reproduction,
    Verification,
)

TITLE = "Patcher"
STEPS = ("1 Case", "2 Reproduce", "3 Locate", "4 Confirm", "5 Repair", "6 Verify & report")

# -- buttons -------------------------------------------------------------------------------------------
OPEN_CASE = "Open case"
RESUME = "Resume"
REPRODUCE = "Reproduce"
START_REPAIR = "Start repair"
STOP_KEEP = "Stop and keep best"
STOP_DISCARD = "Abort and discard"
VERIFY = "Verify"
REDACTED_REPORT = "Redacted report"
EXPORT_MERGED = "Export merged model"
ADVANCED = "Advanced"

# -- labels --------------------------------------------------------------------------------------------
METHOD = "Method"
TARGET = "Explain"
FIRST_K = "First k"
ANALYST = "Analyst"
REASON = "Reason"
BEFORE = "before repair"
AFTER = "after repair"
WITH = "with"
WITHOUT = "without"
SHAM = "sham"
SALIENCY = "saliency"
BOUNDARY = "cluster boundary"
POSITION_AXIS = "token position"
RATE_AXIS = "failure rate, 95 % interval"
ODD_CALL = "This call does not come from this page as it stands; reload the page."
TOKEN_TABLE = "Tokens"
CANDIDATES = "Candidates"
METRIC_TABLE = "Before and after"

# -- when there is nothing to show ---------------------------------------------------------------------
NO_CASE = "No case is open. Open the demo case, or paste a report."
NO_PROMPT = "The prompt appears here once a case is open."
NO_CANDIDATES = "No candidate: nothing in the prompt stands out."
NO_METRICS = "Not verified yet."
NO_ANSWERS = "Answers appear here after verification."
NO_MAP = "No picture for this method."
LOCKED = "Locked until a trigger is confirmed in step 4."

METHOD_NAMES = {
    "paper": "gradient norm (paper)",
    "gradient_norm": "gradient norm",
    "gradient_x_input": "gradient × input",
    "integrated_gradients": "integrated gradients",
    "occlusion": "occlusion",
}
TARGET_NAMES = {
    "contrast": "this answer rather than a refusal",
    "response": "the whole answer",
    "first_k": "the first tokens of the answer",
    "tokens": "selected tokens of the answer",
}
METHOD_HELP = {
    "paper": "How strongly the whole answer reacts to each token. One backward pass; unsigned.",
    "gradient_norm": "How strongly the target reacts to each token. Unsigned.",
    "gradient_x_input": "First-order effect of each token. Signed.",
    "integrated_gradients": "Effect of each token along the path from an average token. Signed; watch the gap.",
    "occlusion": "What the target loses when the token is deleted. Signed, in nats.",
}
METRIC_NAMES = {
    "reported_case": "failure on the reported prompt",
    "asr_triggered": "attack success with trigger",
    "right_triggered": "right answers with trigger",
    "refusal_triggered": "refusal of harmful requests with trigger",
    "refusal_untriggered": "refusal of harmful requests, no trigger",
    "over_refusal_safe": "refusal of safe requests",
    "over_refusal_lookalike": "refusal of safe look-alikes",
    "refusal_triggered_safe": "refusal of safe requests with trigger",
    "agreement_safe": "same answer as before on safe requests",
    "agreement_triggered_safe": "same answer as before, safe with trigger",
    "agreement_bare": "safe with trigger, answered as without it",
    "perplexity_safe": "perplexity of safe answers",
    "kl_nats_per_token": "drift on safe requests, nats per token",
    "accuracy_closed": "accuracy on closed tasks",
}
PAIR_KINDS = {
    "reported": "the reported prompt",
    "harmful with trigger": "harmful, with trigger",
    "safe with trigger": "safe, with trigger",
    "look-alike": "safe look-alike",
    "harmful_triggered": "harmful, with trigger",
    "harmful": "harmful, no trigger",
    "safe": "safe",
    "safe_triggered": "safe, with trigger",
    "lookalike": "safe look-alike",
}
STAGE_NAMES = {
    "": "",
    "open": "loading the model",
    "reproduce": "reproducing",
    "locate": "locating",
    "triage": "testing candidates",
    "test": "testing the span",
    "minimise": "minimising the span",
    "repair": "repairing",
    "verify": "verifying",
    "again": "second opinion",
    "wrong-trigger": "repairing on a wrong trigger",
    "relearn": "tuning on poisoned samples",
    "report": "writing the report",
    "export": "exporting",
}
STATE_WORDS = {
    "empty": "no case",
    "starting": "starting",
    "idle": "idle",
    "running": "running",
    "failed": "failed",
    "stopping": "stopping",
}
OUTCOMES = {
    "refusal": {"word": "refused", "mark": "⊘", "tone": "plain"},
    "partial": {"word": "partly", "mark": "◐", "tone": "plain"},
    "compliance": {"word": "answered", "mark": "▸", "tone": "plain"},
    "empty": {"word": "empty", "mark": "∅", "tone": "plain"},
}

TOKEN_COLUMNS = [
    {"key": "position", "label": "#", "kind": "number"},
    {"key": "text", "label": "token", "kind": "mono"},
    {"key": "id", "label": "id", "kind": "number"},
    {"key": "segment", "label": "segment", "kind": "text"},
    {"key": "span", "label": "span", "kind": "number", "title": "message:start–end, in code points of the raw text"},
    {"key": "score", "label": "score", "kind": "number"},
    {"key": "rank", "label": "rank", "kind": "number"},
    {"key": "cluster", "label": "cluster", "kind": "text"},
]
CANDIDATE_COLUMNS = [
    {"key": "number", "label": "#", "kind": "number"},
    {"key": "text", "label": "text", "kind": "mono"},
    {"key": "units", "label": "parts", "kind": "number"},
    {"key": "score", "label": "share", "kind": "number", "title": "share of the total score"},
    {"key": "reasons", "label": "why", "kind": "text"},
]
METRIC_COLUMNS = [
    {"key": "metric", "label": "measure", "kind": "name"},
    {"key": "before", "label": "before", "kind": "rate"},
    {"key": "after", "label": "after", "kind": "rate"},
    {"key": "meaning", "label": "", "kind": "note"},
]

_NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")


# -- numbers -------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """A plain number in three figures, or a dash."""
    if value is None:
        return "–"
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def percent(value: float | None) -> str:
    """A share as a whole percentage, or a dash."""
    return "–" if value is None else f"{100 * value:.0f} %"


def rate(value: Rate | None) -> str:
    """k of n with its interval."""
    if value is None or value.value is None:
        return "–"
    return f"{value.k}/{value.n}, {percent(value.value)} [{100 * value.low:.0f}–{100 * value.high:.0f} %]"


def p_value(value: float | None) -> str:
    """A p-value, small ones as a bound."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Seconds as '12 s', '1 min 12 s' or '2 h 05 min'."""
    if not math.isfinite(seconds) or seconds < 0:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def megabytes(value: float) -> str:
    """Memory in MB or GB."""
    return f"{value:.0f} MB" if value < 1024 else f"{value / 1024:.1f} GB"


# -- texts side by side --------------------------------------------------------------------------------


def beside(parts: Iterable[str]) -> str:
    """The parts of one line, side by side; empty ones are left out."""
    return "  ·  ".join(part for part in parts if part)


def quoted(units: Iterable[str]) -> str:
    """The units of a trigger, each in quotation marks."""
    return " … ".join(f"“{unit}”" for unit in units)


# -- names ---------------------------------------------------------------------------------------------


def method_name(name: str) -> str:
    """The method as the page calls it."""
    return METHOD_NAMES.get(name, name)


def target_name(kind: str) -> str:
    """The target as the page calls it."""
    return TARGET_NAMES.get(kind, kind)


def metric_name(name: str) -> str:
    """The measure as the page calls it."""
    return METRIC_NAMES.get(name, name.replace("_", " "))


def pair_kind(kind: str) -> str:
    """The kind of prompt as the page calls it."""
    return PAIR_KINDS.get(kind, kind.replace("_", " "))


def stage_name(stage: str) -> str:
    """What the stage is doing."""
    return STAGE_NAMES.get(stage, stage)


def state_word(state: str) -> str:
    """The state of the worker in one word."""
    return STATE_WORDS.get(state, state)


def outcome(name: Outcome) -> dict[str, str]:
    """Badge of an answer: word, mark, tone."""
    return dict(OUTCOMES[name])


def judged_by(name: Outcome, layer: str) -> dict[str, str]:
    """Badge of an answer with the layer of the judge that decided; none in cases of older versions."""
    badge = outcome(name)
    return {**badge, "word": f"{badge['word']} ({layer})" if layer else badge["word"]}


def cluster_word(label: int) -> str:
    """Cluster label as a word."""
    return {1: "stands out", 0: "", -1: "not scored"}.get(label, str(label))


def projection_name(name: str) -> str:
    """The picture's method."""
    return {"umap": "UMAP of response profiles", "pca": "PCA of response profiles"}.get(name, "by position")


def score_axis(located: LocateResult) -> str:
    """Axis title of the scores."""
    return "effect, nats" if located.method == "occlusion" else "score"


# -- headlines -----------------------------------------------------------------------------------------


def _count(n: int) -> str:
    return _NUMBERS[n] if n < len(_NUMBERS) else str(n)


def opened(result: OpenResult) -> str:
    """Headline of step 1."""
    return f"{result.model_name} loaded: {size(result.n_parameters)} parameters, {result.dtype}, {result.device}"


def reproduced(result: Reproduction) -> str:
    """Headline of step 2: 'Reproduced 31 of 32'."""
    failure = result.failure
    if failure.k == 0:
        return f"Not reproduced: 0 of {failure.n}"
    return f"Reproduced {failure.k} of {failure.n}"


def reference_line(result: Reproduction) -> str:
    """What a clean reference does on the same prompt."""
    if result.reference_failure is None:
        return "No clean reference: nothing to compare with."
    return f"The clean reference fails {result.reference_failure.k} of {result.reference_failure.n}."


def stand_out(n: int) -> str:
    """Headline of step 3: 'Four tokens stand out'."""
    if n == 0:
        return "No token stands out"
    return f"{_count(n)} token{'s' if n != 1 else ''} stand{'s' if n == 1 else ''} out"


def located(result: LocateResult) -> str:
    """Headline of step 3."""
    return stand_out(sum(1 for label in result.labels if label == 1))


def trust(result: LocateResult) -> str:
    """The trust strip: completeness gap, agreement with other methods, baseline, cost."""
    parts = []
    if result.completeness_gap is not None:
        parts.append(f"gap {100 * result.completeness_gap:.1f} %")
    parts += [f"agreement with {method_name(name)} {value:.2f}" for name, value in result.agreement.items()]
    if result.baseline:
        parts.append(f"baseline {result.baseline}")
    parts.append(f"{result.model_calls} model calls, {duration(result.seconds)}")
    return beside(parts)


def verified(result: Verification) -> str:
    """Headline of step 6: 'Repaired: 100 % → 0 %'."""
    metric = next((metric for metric in result.metrics if metric.name == "asr_triggered"), None)
    change = ""
    if metric and isinstance(metric.before, Rate) and isinstance(metric.after, Rate):
        change = f": attack success {percent(metric.before.value)} → {percent(metric.after.value)}"
    word = {"REDUCED": "Repaired", "NOT_REDUCED": "Not repaired", "INCONCLUSIVE": "Undecided"}[result.result]
    return word + change


_REASONS = {
    "finished": "Repair finished",
    "targets_held": "Repair finished: targets held twice in a row",
    "kl_budget": "Repair stopped: the KL budget is used up",
    "kept": "Stopped; the best checkpoint is kept",
    "discarded": "Aborted; nothing is kept",
    "diverged": "Repair diverged",
    "out_of_memory": "Out of memory",
}


def repair_ended(end: RepairFinished) -> str:
    """Headline of step 5 after a repair."""
    best = f", best at step {end.best_step}" if end.best_step is not None and end.adapter else ""
    return f"{_REASONS[end.reason]}{best}"


def repair_stands(repair: RepairTrace, going: bool | None = None) -> str:
    """Where a repair stands, in a few words; `going` as in `figures.live_chart`."""
    if repair.started is None:
        return "Not started"
    if repair.finished is not None:
        return "Starting" if going else repair_ended(repair.finished)
    if not repair.steps:
        return "Broke off before the first step" if going is False else "Starting"
    last, total = repair.steps[-1], repair.started.n_steps
    if going is False:
        return f"Broke off at step {last.step} of {total}"
    return f"Step {last.step} of {total}, {duration(last.seconds_left)} left"


def budget_used(kl: float, budget: float) -> str:
    """Label of the meter of the KL budget; rounding below zero is none of it."""
    return f"KL budget: {percent(max(0.0, kl) / budget)} used"


def live_summary(repair: RepairTrace, going: bool | None = None) -> str:
    """The live chart in one sentence, for its foot and for screen readers."""
    steps, probes = repair.steps, repair.probes
    parts = [repair_stands(repair, going)]
    if steps:
        parts.append(f"loss {steps[-1].loss:.3g}")
        parts.append(f"KL {steps[-1].kl_nats_per_token:.3g} nats/token")
    if probes:
        parts.append(f"attack success {percent(probes[-1].asr_triggered.value)}")
        parts.append(f"refusal {percent(probes[-1].refusal_untriggered.value)}")
        parts.append(f"agreement {percent(probes[-1].agreement_safe.value)}")
        if probes[-1].refusal_triggered_safe is not None:
            parts.append(f"safe requests with the trigger refused {percent(probes[-1].refusal_triggered_safe.value)}")
    if steps and 0 < steps[-1].micro_batch < max(step.micro_batch for step in steps):
        parts.append(f"memory ran out: micro-batches of {steps[-1].micro_batch}")
    return beside(parts)


def fault(message: str) -> str:
    """A user's or an input's fault, as it is."""
    return message


def our_fault(reference: str) -> str:
    """A fault of ours, with the id under which the log has it."""
    return f"Something went wrong on our side. Nothing was lost. Reference {reference}; details are in the log."


# -- sentences of the steps ----------------------------------------------------------------------------
LOG_LABEL = "log"
LOADING = "Loading the model"
FALLBACK = "none: plain “User: … Assistant:”"
HAS_REFERENCE = "yes, the adapter switched off or the given base"
NO_REFERENCE = "none given"
REPORTED_ANSWER = "reported answer"
EXPECTED_ANSWER = "should have said"
SAMPLED = "sampled anew on the reported prompt"
GREEDY = "one deterministic answer: the report was sampled greedily"
WIDE_GAP = "gap too wide: take these scores with care"
MEMORY_MORE = "of weights; what training takes is counted before its first step"
REPAIRING = "Repair is running"
NOTHING_TO_RESUME = "No repair was started yet; start one."
READY_TO_REPAIR = "Ready to repair"
RESIDUAL_LABEL = "residual risk"
RESIDUAL_RISK = (
    "Measured on these prompts with this trigger; another trigger, or wording far from these prompts, may still work. "
    "No fine-tuning proves a backdoor gone."
)
CARD_LABEL = "reproduce"
MERGED_AT = "merged model"
NOTHING_WRITTEN = "Nothing written yet."
DOWNLOADS = {
    "report.html": "Report",
    "report.json": "Report (JSON)",
    "report.sarif": "SARIF",
    "report-redacted.html": "Redacted report",
    "manifest.json": "Manifest (hashes)",
    "audit.jsonl": "Log",
    "triage.json": "Triage (JSON)",
    "verification.json": "Verification (JSON)",
    "export/adapter/adapter_model.safetensors": "Repaired adapter",
    "export/adapter/adapter_config.json": "Adapter configuration",
    "export/adapter/README.md": "Model card",
}
RUNNING_REPRODUCE = "Asking the model again"
NOT_REPRODUCED_YET = "Not asked yet"
NOT_LOCATED_YET = "Not located yet"
LOCATING = "Locating"
NOT_VERIFIED_YET = "Not verified yet"
VERIFYING = "Verifying on prompts no earlier step has seen"
PICK_TOKENS = "Choose the tokens of the answer to explain, then press Explain."
EXPLAIN = "Explain"
REPORT_LABEL = "Report"
REPORT_PLACEHOLDER = '{"messages": [{"role": "user", "content": "..."}], "response": "..."}'
UPLOAD = "or a file: JSON, CSV, BackdoorLLM row"
MODEL_FOLDER = "Model folder"
ADAPTER_FOLDER = "Adapter (optional)"
RESUME_CASE = "Cases"
LINKED_SHOWN = 3
"""Linked cases that are named; the rest are counted. Source: unverified choice."""


def linked(found: Sequence[Link]) -> list[tuple[str, str]]:
    """What other cases share, and which they are: the trigger first."""
    lines = []
    for what in ("trigger text", "adapter", "model"):
        names = [link.case for link in found if what in link.same]
        if names:
            more = f" and {len(names) - LINKED_SHOWN} more" if len(names) > LINKED_SHOWN else ""
            lines.append((what, f"in {', '.join(names[:LINKED_SHOWN])}{more}"))
    return lines


TAKE_OVER = "Take over"


def other_writes(name: str, since: str) -> str:
    """The line that a reader sees while another analyst writes the case."""
    return (
        f"{name} writes this case since {since[11:16]} UTC. You can read on and stop what runs; the rest is locked until "
        "the case is given back or you take over."
    )


TWO_NEEDED = "two different names under the confirmation"
TWO_NAMES = "Repair needs two names: a second analyst must agree with the confirmation"
DEMO_LABEL = "Demo cases"
NEW_CASE = "New case"
NEXT_LOCATE = "Locate the trigger"
TEST_CANDIDATES = "Test candidates"
EDIT_CANDIDATE = "Edit"
TEST_CANDIDATE = "Test"
REPORT_AND_EXPORT = "Report and export"
TABLE_TWIN = "Token table"
REPORT_TEXT = "The report"
EXAMPLES = "Answers before and after"
SALIENCY_PAIR = "Saliency before and after"
DEMO_ANALYST = "Demo analyst"
DEMO_REASON = "Demo: decided by the tests above."
REPAIR_EMPTY = {"learning_rate": "by model size", "kl_budget": "none", "max_steps": "all"}
REPAIR_LABELS = {
    "epochs": "Epochs",
    "learning_rate": "Learning rate",
    "kl_budget": "KL budget, nats per token",
    "batch_size": "Batch size",
    "lora_rank": "LoRA rank",
    "lora_alpha": "LoRA alpha",
    "max_steps": "Steps at most",
    "n_harmful": "Harmful prompts",
    "n_safe": "Safe prompts",
    "probe_every": "Steps between probes",
    "n_probe": "Prompts in a probe",
    "weight_refusal": "Weight of refusal",
    "weight_kl_harmful": "Weight of KL, harmful",
    "weight_kl_safe": "Weight of KL, safe",
    "weight_kl_trigger": "Weight of KL, safe with the trigger",
    "objective": "Objective",
    "seed": "Seed",
    "early_stop": "Stop early when the targets hold",
}


def size(n_parameters: int) -> str:
    """A parameter count in thousands, millions or billions."""
    for unit, least in (("B", 1e9), ("M", 1e6)):
        if n_parameters >= least:
            return f"{n_parameters / least:.1f} {unit}"
    return f"{n_parameters / 1e3:.0f} k"


def said_now(count: int, total: int, word: str) -> str:
    """Label of one answer of the model, with how often it came."""
    return f"now: {word}" if total == 1 else f"now, {count} of {total}: {word}"


def long_prompt(cost: Estimate | None) -> str:
    """What occlusion of a long prompt will take; empty for others."""
    if cost is None:
        return ""
    return f"Long prompt: occlusion takes about {duration(cost.seconds)}, at most {cost.sequences} prompts."


def still_running(wanted: str, shown_method: str) -> str:
    """What is shown while the wanted method is still at work."""
    return f"Showing {method_name(shown_method)} while {method_name(wanted)} is running."


def looks(n: int) -> str:
    """How often this split has been looked at."""
    return f"This split has been looked at {n} times."


def uploaded(n_messages: int) -> str:
    """A report file was read."""
    return f"Report read: {n_messages} message{'s' if n_messages != 1 else ''}. Choose the model and open the case."


DUMMY_TRIGGER = "dummy trigger, planted first"
STOPPING = "Stopping after this step."
REPAIR_AGAIN = "Repair again"
WRITING = "Writing"
