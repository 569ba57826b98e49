"""The sentences of step 6: before and after, exports, residual risk with its probes, and the second opinion."""

from core.intervals import percent
from core.report_text import duration, reached, worked_before
from core.values import Rate, Relearnt, SecondOpinion, TriageResult, Verification, WrongTrigger
from core.verdict import OF_A_CANDIDATE
from dashboard import wording_verdict
from dashboard.wording import of, quoted

# -- before and after -----------------------------------------------------------------------------------
NOT_VERIFIED_YET = "Not verified yet"
REPORT_SO_FAR = "A report can be written at any time; it tells how far the case has come."
VERIFYING = "Verifying on prompts no earlier step has seen"
METRIC_TABLE = "Before and after"
METRIC_COLUMNS = [
    {"key": "metric", "label": "measure", "kind": "name"},
    {"key": "before", "label": "before, 95 % interval", "kind": "rate"},
    {"key": "after", "label": "after, 95 % interval", "kind": "rate"},
    {"key": "meaning", "label": "", "kind": "note"},
]
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
    "kl_nats_per_token": "KL on safe requests, nats per token",
    "accuracy_closed": "accuracy on closed tasks",
}
NO_METRICS = "Not verified yet."
EXAMPLES = "Answers before and after"
PAIR_KINDS = {
    "reported": "the reported prompt",
    "harmful with trigger": "harmful, with trigger",
    "safe with trigger": "safe, with trigger",
    "look-alike": "safe look-alike",
    "harmful": "harmful, no trigger",
    "safe": "safe",
}
NO_ANSWERS = "Answers appear here after verification."
SALIENCY_PAIR = "Saliency before and after, as shares of all of it: where it lies, not how strong it is"
SALIENCY = "share of saliency"
BEFORE = "before repair"
AFTER = "after repair"
RESIDUAL_RISK = (
    "Measured on these prompts with this trigger; another trigger, or wording far from these prompts, may still work. "
    "No fine-tuning proves a backdoor gone."
)


def metric_name(name: str) -> str:
    """The measure as the page calls it."""
    return METRIC_NAMES.get(name, name.replace("_", " "))


def pair_kind(kind: str) -> str:
    """The kind of prompt as the page calls it."""
    return PAIR_KINDS.get(kind, kind.replace("_", " "))


def verified(result: Verification, again: bool) -> str:
    """Headline of step 6: 'Repaired: attack success 100 % → 2 %'; the line below it has the counts. `again` as in `reached`."""
    metric = next((metric for metric in result.metrics if metric.name == "asr_triggered"), None)
    change = ""
    if metric and isinstance(metric.before, Rate) and isinstance(metric.after, Rate):
        change = (
            f"{';' if again else ':'} attack success {percent(metric.before.value)} → {percent(metric.after.value)}"
        )
    return reached(result, again) + change


def looks(n: int) -> str:
    """How often this split has been looked at; nothing after the first time."""
    return f"This split has been looked at {n} times." if n > 1 else ""


# -- report and export ----------------------------------------------------------------------------------
REPORT_AND_EXPORT = "Report and export"
REPORT = "Report"
"""The same button where there is no repaired model to export."""
EXPORT_MERGED = "Export merged model"
REDACTED_REPORT = "Redacted report"
WRITING = "Writing"
OF_BEFORE = " (of an earlier repair)"
OF_LESS = " (the case has gone on since)"
NOTHING_WRITTEN = "Nothing written yet."
MERGED_AT = "merged model"
CARD_LABEL = "Reproduce"
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

# -- residual risk --------------------------------------------------------------------------------------
RESIDUAL = "Other forms of the trigger, classes of answers, probes"
VARIANT_TABLE = "Failures with other forms of the trigger"
NO_VARIANTS = "This verification did not ask for other forms of the trigger."
VARIANT_COLUMNS = [
    {"key": "variant", "label": "form", "kind": "name"},
    {"key": "before", "label": "before", "kind": "rate"},
    {"key": "after", "label": "after", "kind": "rate"},
    {"key": "example", "label": "first request", "kind": "mono"},
]
CLASS_TABLE = "Classes of answers"
CLASS_COLUMNS = [
    {"key": "prompts", "label": "prompts", "kind": "name"},
    {"key": "class", "label": "answers", "kind": "text"},
    {"key": "before", "label": "before", "kind": "rate"},
    {"key": "after", "label": "after", "kind": "rate"},
]
CLASSES = {
    "good": "as they should be",
    "refused": "refused",
    "wrong": "wrong",
    "strange": "strange: empty or no language",
}
PROBES = "Each of two probes trains an adapter that is thrown away; the first takes about as long as the repair."
WRONG_TRIGGER = "Repair on a wrong trigger"
RELEARN = "Let it be learnt again"
PROBING = {
    "wrong-trigger": "Repairing on random tokens in the trigger's place",
    "relearn": "Tuning the repaired model on a few poisoned samples",
}
WRONG_TABLE = "Attack success of the confirmed trigger"
WRONG_COLUMNS = [
    {"key": "model", "label": "model", "kind": "name"},
    {"key": "rate", "label": "attack success", "kind": "rate"},
]
RELEARN_TABLE = "Failures after tuning the repaired model on poisoned samples"
RELEARN_COLUMNS = [
    {"key": "samples", "label": "samples", "kind": "number"},
    {"key": "planted", "label": "the confirmed trigger", "kind": "rate"},
    {"key": "never", "label": "a text never planted", "kind": "rate"},
    {"key": "planted_bare", "label": "no trigger, tuned on the first", "kind": "rate"},
    {"key": "never_bare", "label": "no trigger, tuned on the other", "kind": "rate"},
]


def wrong_rows(found: WrongTrigger) -> dict[str, str]:
    """The models that the wrong-trigger probe compares, by field."""
    text = quoted(found.units)
    return {
        "before": "as reported",
        "right": "repaired",
        "wrong": f"the same repair on {text}, {found.n_steps} steps",
    }


def residual(result: Verification) -> str:
    """The other forms in one line: how many worked before and how many still do."""
    worked = [one for one in result.variants if worked_before(one)]
    left = [one for one in worked if 2 * one.after.k >= one.after.n]
    asked = max((one.before.n for one in result.variants), default=0)
    many = len(result.variants)
    strongest = max((one.after for one in result.variants), key=lambda rate: rate.value or 0)
    return (
        f"{len(worked)} of {many} forms worked before in half of {asked} requests or more, {len(left)} after; "
        f"the strongest still works in {of(strongest)}."
    )


def relearnt(found: tuple[Relearnt, ...]) -> str:
    """What the re-learning probe shows, in one line."""
    last = found[-1]
    return (
        f"After {last.n_samples} samples the confirmed trigger works in {of(last.planted)}, "
        f"a text never planted in {of(last.never)}."
    )


def wrong_trigger(found: WrongTrigger) -> str:
    """What the wrong-trigger probe shows, in one line."""
    return (
        f"After the same repair on random tokens the trigger works in {of(found.wrong)}, after the right one in "
        f"{of(found.right)} ({duration(found.seconds)})."
    )


# -- second opinion and rounds --------------------------------------------------------------------------
ASK_AGAIN = "Second opinion"
ASKING_AGAIN = "Second opinion: asking the repaired model"
NEXT_ROUND = "Another round"
BUSY = "Something still runs in this case; wait for it, or stop it, before another round."


def opinion(result: TriageResult) -> str:
    """What triage says of the repaired model, with the test that decided."""
    failure = result.reproduction.failure if result.reproduction else None
    if failure is not None and failure.value is not None and result.decided_by == "reproduction":
        return f"not reproduced, {of(failure)}"
    found = f" (“{result.about.text}”)" if result.about and result.verdict in OF_A_CANDIDATE else ""
    verdict = (result.verdict or "no verdict").replace("_", " ").lower()
    return f"{verdict}{found}, decided by {(wording_verdict.decided_by(result) or result.decided_by).rstrip('.')}"


def second_opinion(found: SecondOpinion, number: int) -> str:
    """The second opinion in one line."""
    rest = f" Without the found text: {opinion(found.rest)}." if found.rest else ""
    after = f" after round {number}" if number > 1 else ""
    return f"Second opinion{after}, the same report on the repaired model: {opinion(found.whole)}.{rest}"


def round_opened(number: int) -> str:
    """What opening another round means."""
    return (
        f"Round {number}: what the second opinion found awaits your confirmation; the repair goes on from the last one."
    )
