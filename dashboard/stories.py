"""Results to `Story` values: the headline of each step with its facts and quotes. Pure; text stays raw, it is never HTML.

Sentences come from `wording.py`; this file only puts them in order. What this does not do: read files, decide anything.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from core import best_checkpoint, verdict_text
from core import result as repair_result
from core.casefile import Manifest
from core.containment import FILE as RULES
from core.containment import RuleFile
from core.events import RepairFinished, RepairStarted
from core.links import Link
from core.report_text import not_asked, unreached
from core.rounds import EndedRound
from core.serial import from_json
from core.settings import RepairSettings, VerificationSettings
from core.values import (
    Estimate,
    LocateResult,
    MinimisedSpan,
    OpenResult,
    Outcome,
    Reproduction,
    SecondOpinion,
    TestOutcome,
    TriageResult,
    TriggerConfirmation,
    Verdict,
    Verification,
)
from core.verdict import OF_A_CANDIDATE
from dashboard import (
    wording,
    wording_case,
    wording_confirm,
    wording_locate,
    wording_repair,
    wording_verdict,
    wording_verify,
)

Value = dict[str, object]
REPAIR_TONES = {"finished": "good", "targets_held": "good", "kept": "plain", "kl_budget": "plain", "discarded": "plain"}
"""How an end of a repair is marked; every other end is a warning."""
SHOWN_ANSWERS = 3
"""Different answers that Reproduce shows at most. Source: unverified choice."""
OF_A_REPAIR = ("verification.json", "export/")
"""How the names of downloads begin that are of one repair."""
HASH_LENGTH = 16
"""Characters of a hash that are shown; the report has it whole. Source: unverified choice."""


def note(text: str) -> Value:
    """A quiet message, or nothing."""
    return {"headline": text, "tone": "plain"} if text else {}


def fault(text: str, log: str = "") -> Value:
    """An error: one sentence, with the log behind a disclosure."""
    return {"headline": text, "tone": "warn", "why": log, "why_label": wording.LOG_LABEL}


def waiting(text: str, line: str = "") -> Value:
    """A step that has nothing to show yet; `line` says more."""
    return {"headline": text, "tone": "muted", **({"line": line} if line else {})}


def _short(digest: str) -> str:
    return digest[:HASH_LENGTH] + "…"


def case(manifest: Manifest, opened: OpenResult | None, linked: Sequence[Link] = ()) -> Value:
    """Step 1: what is on the table, and the other cases that share it."""
    model, report = manifest.model, manifest.report
    weights = [(name, digest) for name, digest in model.files.items() if name.endswith(".safetensors")]
    weights += [(name, digest) for name, digest in model.adapter_files.items() if name.endswith(".safetensors")]
    facts: list[list[str]] = [["case", f"{manifest.id}, created {manifest.created[:19]} UTC"], ["model", model.path]]
    if model.adapter:
        facts.append(["adapter", model.adapter])
    facts += [[f"SHA-256 {name}", _short(digest)] for name, digest in weights]
    if manifest.report_file is not None:
        facts.append([f"SHA-256 {manifest.report_file.name or 'report'}", _short(manifest.report_file.sha256)])
    if manifest.reviewers > 1:
        facts.append(["repair needs", wording_case.TWO_NEEDED])
    if opened is not None:
        facts += [
            ["loaded", f"safetensors only, no remote code; {opened.dtype} on {opened.device}"],
            ["memory", f"{wording.megabytes(opened.memory_mb)} of weights"],
            ["context", f"{opened.context_length} tokens" if opened.context_length else "not stated"],
            [
                "SHA-256 chat template" if not opened.prompt.fallback_template else "chat template",
                _short(opened.prompt.template_hash) if not opened.prompt.fallback_template else wording_case.FALLBACK,
            ],
            ["clean reference", wording_case.reference(opened.has_reference, manifest.reference is not None)],
        ]
    if report.source:
        facts.append(["report from", report.source])
    facts += [[f"same {what}", text] for what, text in wording_case.linked(linked)]
    headline = wording_case.opened(opened) if opened else wording.LOADING
    line = " ".join(filter(None, [*opened.warnings, wording.long_prompt(opened.occlusion)])) if opened else ""
    tone = "warn" if line else "good" if opened else "busy"
    return {"headline": headline, "tone": tone, "line": line, "facts": facts}


def report(manifest: Manifest) -> Value:
    """Step 1: the report, verbatim."""
    quotes: list[Value] = [{"label": m.role, "text": m.content, "tone": "plain"} for m in manifest.report.messages]
    quotes.append({"label": wording.REPORTED_ANSWER, "text": manifest.report.response, "tone": "bad"})
    if manifest.report.expected:
        quotes.append({"label": wording.EXPECTED_ANSWER, "text": manifest.report.expected, "tone": "good"})
    return {"quotes": quotes}


def reproduction(result: Reproduction, manifest: Manifest) -> Value:
    """Step 2: how often it fails, next to what it should have said."""
    failure = result.failure
    shown = wording.rate if failure.n > 1 else wording.of  # one deterministic answer has no interval
    facts = [["failure rate", shown(failure)], ["how", result.note]]
    if result.reference_failure is not None:
        facts.append(["clean reference", shown(result.reference_failure)])
    quotes: list[Value] = [{"label": wording.REPORTED_ANSWER, "text": manifest.report.response, "tone": "bad"}]
    if manifest.report.expected:
        quotes.append({"label": wording.EXPECTED_ANSWER, "text": manifest.report.expected, "tone": "good"})
    seen: dict[str, tuple[int, Outcome, str]] = {}
    layers = result.layers or ("",) * len(result.answers)
    for answer, outcome, layer in zip(result.answers, result.outcomes, layers, strict=True):
        count, *_ = seen.get(answer, (0,))
        seen[answer] = (count + 1, outcome, layer)
    ranked = sorted(seen.items(), key=lambda item: -item[1][0])[:SHOWN_ANSWERS]
    for answer, (count, outcome, layer) in ranked:
        word = wording.judged_by(outcome, layer)["word"]
        quotes.append(
            {"label": wording_case.said_now(count, len(result.answers), word), "text": answer, "tone": "plain"}
        )
    return {
        "headline": wording_case.reproduced(result),
        "tone": "plain",
        "line": wording_case.reference_line(result),
        "facts": facts,
        "quotes": quotes,
    }


def located(result: LocateResult, wanted: str | None, cost: Estimate | None = None) -> Value:
    """Step 3: how many tokens stand out; `wanted` names the method that is still running, `cost` what occlusion takes."""
    line = wording_locate.still_running(wanted, result.method) if wanted else wording_locate.METHOD_HELP[result.method]
    line = f"{line} {wording.long_prompt(cost)}".strip() if wanted == "occlusion" else line
    return {"headline": wording_locate.located(result), "tone": "busy" if wanted else "plain", "line": line}


def trust(result: LocateResult, gap_warning: float) -> Value:
    """Step 3: completeness gap, agreement, baseline, cost."""
    wide = result.completeness_gap is not None and result.completeness_gap > gap_warning
    return {
        "line": wording.beside([wording_locate.trust(result), wording_locate.WIDE_GAP if wide else ""]),
        "tone": "plain",
    }


def containment(made: RuleFile | None, folder: str) -> Value:
    """Step 4: the rule file of the confirmed trigger, to download; `folder` is the name of the case's folder."""
    if made is None:
        return {}
    link: Value = {"text": wording_confirm.RULE_FILE, "href": f"/case/{folder}/{RULES}", "download": True}
    return {"line": wording_confirm.contained(len(made.rules), len(made.tested), made.missed), "links": [link]}


def serving(result: TriageResult) -> Value:
    """Step 4, above the verdict: what the failure owes to how the model is served; nothing where it owes nothing."""
    found = result.owed_to_serving
    if not found:
        return {}
    line = wording.beside(wording_verdict.served_otherwise(one) for one in found)
    return {"headline": wording_verdict.served_headline(found[0]), "tone": "warn", "line": line}


def verdict(result: TriageResult) -> Value:
    """Step 4: the verdict in plain words, one line of why, the test that decided, and what it cost."""
    described = [wording_verdict.served_otherwise(one) for one in result.serving if not one.explains]
    reworded = [f"{one.kind} ({one.source}): {one.text}" for one in result.rewordings]
    decided = wording_verdict.decided_by(result)
    how = [f"{wording_verdict.VERDICT_LABEL}: {result.verdict or '–'}", result.failure, *described, *reworded]
    return {
        "headline": verdict_text.headline(result),
        "tone": "warn" if result.verdict in OF_A_CANDIDATE else "plain",
        "line": wording_verdict.why(result),
        "facts": [[wording_verdict.DECIDED_BY, decided]] if decided else [],
        "note": wording_verdict.cost(result),
        "why": "\n".join(part for part in how if part),
        "why_label": wording_verdict.HOW_DECIDED,
    }


def tested(text: str, tests: Sequence[TestOutcome]) -> Value:
    """Step 4: how a span of the analyst fared."""
    return {"headline": wording_confirm.tested(text, tests), "line": wording_confirm.tested_line(tests)}


def minimised(result: MinimisedSpan) -> Value:
    """Step 4: the smallest part of a span of the analyst that does the same."""
    note = wording.beside((result.logic.rstrip("."), wording_verdict.spent(result.budget)))
    return {"headline": wording_confirm.minimised(result), "line": wording_confirm.minimised_line(result), "note": note}


def selection(units: Sequence[str], edited: bool) -> Value:
    """Step 4: what is marked in the editor."""
    if not units:
        return {"line": wording_confirm.NOTHING_MARKED, "tone": "muted"}
    text = wording.quoted(units)
    state = wording_confirm.EDITED if edited else wording_confirm.AS_PROPOSED
    return {"line": wording.beside([f"{wording_confirm.MARKED}: {text}", state]), "tone": "plain"}


def decision(confirmation: TriggerConfirmation | None, fault_text: str | None, found: Verdict | None) -> Value:
    """Step 4: the decision that stands, or why none does; under the verdict `found`, what one would mean."""
    if confirmation is None:
        return {
            "headline": wording_confirm.UNDECIDED,
            "tone": "muted",
            "line": wording_verdict.NEXT.get(found or "", ""),
        }
    units = wording.quoted(confirmation.units)
    agreed = wording_confirm.agreed(confirmation.second) if confirmation.second else ""
    value: Value = {
        "headline": wording_confirm.confirmed(confirmation),
        "tone": "plain" if confirmation.decision == "rejected" else "good",
        "line": wording.beside((units, confirmation.reason, agreed)),
    }
    if lacks_second(confirmation, fault_text):
        return value | {"tone": "warn", "note": fault_text}
    void = fault_text is not None and confirmation.decision != "rejected"
    return value | ({"headline": fault_text, "tone": "warn"} if void else {})


def repair_ahead(opened: OpenResult | None, most_mb: float | None, share: float = 0.0) -> list[list[str]]:
    """Step 5: where a repair will run, the memory it will take at most, if that was counted, and the share of the model out of its reach."""
    if opened is None:
        return []
    memory = wording_repair.memory_ahead(opened.memory_mb, most_mb)
    return [["device", opened.device], ["memory", memory], *_experts(share)]


def _experts(share: float) -> list[list[str]]:
    return [["experts", unreached(share)]] if share else []


def lacks_second(confirmation: TriggerConfirmation, fault_text: str | None) -> bool:
    """Return whether all that a confirmation lacks may be the second analyst's agreement."""
    return fault_text is not None and confirmation.decision != "rejected" and confirmation.reviewers > 1


def repair(
    lock: str | None,
    confirmation: TriggerConfirmation | None,
    ahead: list[list[str]],
    started: RepairStarted | None,
    finished: RepairFinished | None,
    running: bool,
    since: RepairFinished | None = None,
) -> Value:
    """Step 5: what will be, is being or was repaired; `ahead` are the facts before a start (`repair_ahead`), `since` is how another one
    ended that left nothing."""
    if lock is not None and not running:
        return {"headline": wording_repair.LOCKED, "tone": "muted", "line": lock}
    units = wording.quoted(confirmation.units) if confirmation else ""
    dummy = confirmation is not None and confirmation.way == "dummy"
    facts = [[wording_repair.DUMMY_TRIGGER if dummy else "trigger", units]]
    if started is not None:
        facts += [
            ["device", started.device],
            ["steps", wording_repair.steps(started)],
            ["prompts", f"{started.n_harmful} harmful, {started.n_safe} safe"],
            ["trained", f"{started.n_trainable:,} parameters (LoRA)".replace(",", " ")],
            ["memory estimate", wording.megabytes(started.memory_estimate_mb)],
            *_experts(started.unreached),
        ]
    else:
        facts += ahead
    if running:
        value: Value = {"headline": wording_repair.REPAIRING, "tone": "busy", "facts": facts}
        return value if lock is None else value | {"tone": "warn", "line": wording_repair.NOT_CONFIRMED_NOW}
    if finished is not None:
        tone = REPAIR_TONES.get(finished.reason, "warn")
        headline = wording_repair.repair_ended(finished)
        note = f"{since.message} {wording_repair.EARLIER}" if since is not None else ""
        return {"headline": headline, "tone": tone, "line": finished.message, "facts": facts, "note": note}
    return {"headline": wording_repair.READY_TO_REPAIR, "tone": "plain", "facts": facts}


def in_round(story: Value, earlier: Sequence[EndedRound]) -> Value:
    """Step 5: the story of a later round names it, and tells of those before."""
    if not earlier:
        return story
    named = wording.beside((wording_repair.round_name(len(earlier) + 1), str(story["headline"])))
    ended = [[wording_repair.round_name(one.number).lower(), wording_repair.ended_round(one)] for one in earlier]
    return story | {"headline": named, "facts": [*story.get("facts", []), *ended]}  # type: ignore[misc]


def best_rule(started: RepairStarted | None) -> Value:
    """Step 5, folded: how the best checkpoint is chosen, by the settings of a repair or the defaults."""
    settings = from_json(RepairSettings, started.settings if started else {})
    return {"why": "\n".join(best_checkpoint.rule(settings)), "why_label": best_checkpoint.TITLE}


def result_rule(found: Verification | None) -> Value:
    """Step 6, folded: how the result is decided, by the settings of a verification or the defaults."""
    settings = from_json(VerificationSettings, found.settings if found else {})
    return {"why": "\n".join(repair_result.rule(settings)), "why_label": repair_result.TITLE}


def verified(result: Verification, again: bool = False) -> Value:
    """Step 6: before and after in one line, with the reasons and the residual risk; `again`: a second opinion says backdoor."""
    tone = {"REDUCED": "good", "NOT_REDUCED": "bad", "INCONCLUSIVE": "warn"}[result.result]
    return {
        "headline": wording_verify.verified(result, again),
        "tone": "bad" if again else tone,
        "line": " ".join(result.reasons),
        "note": " ".join(filter(None, [wording_verify.RESIDUAL_RISK, wording_verify.looks(result.looks)])),
    }


def second_opinion(found: SecondOpinion | None, number: int, stalled: str, busy: bool, failure: str | None) -> Value:
    """Step 6: what triage says of the repaired model; `stalled` says why another round would be like this one."""
    if busy:
        return {"headline": wording_verify.ASKING_AGAIN, "tone": "busy"}
    if found is None:
        return fault(failure) if failure else {}
    return {
        "line": f"{wording_verify.second_opinion(found, number)} {stalled}".strip(),
        "tone": "warn" if "BACKDOOR" in (found.whole.verdict, found.rest and found.rest.verdict) else "plain",
    }


def residual(result: Verification, running: str | None, failure: str | None) -> Value:
    """Step 6: other forms of the trigger, and what the probes found, in a line each."""
    if running is not None:
        return {"headline": wording_verify.PROBING[running], "tone": "busy"}
    if failure is not None:
        return fault(failure)
    lines = [wording_verify.residual(result)] if result.variants else []
    lines += [not_asked(result)]
    lines += [wording_verify.wrong_trigger(result.wrong_trigger)] if result.wrong_trigger else []
    lines += [wording_verify.relearnt(result.relearnt)] if result.relearnt else []
    return {"line": wording.beside(lines), "tone": "plain"}


def exports(
    manifest: Manifest,
    folder: Path,
    verification: Verification | None,
    outdated: bool = False,
    overtaken: Collection[str] = (),
) -> Value:
    """Step 6: what has been written, as links, and the card that reproduces it. `outdated`: the repair was made for another text than is
    confirmed now, and what was written of it says so. `overtaken`: files that tell less than the case holds by now.
    """
    base = f"/case/{folder.name}"
    old = wording_verify.OF_BEFORE if outdated else ""
    links: list[Value] = []
    for name, text in wording_verify.DOWNLOADS.items():
        if (folder / name).is_file():
            less = wording_verify.OF_LESS if name in overtaken else ""
            told = text + (old if name.startswith(OF_A_REPAIR) else less)
            links.append({"text": told, "href": f"{base}/{name}", "download": not name.endswith(".html")})
    facts = []
    if (folder / "export" / "merged" / "config.json").is_file():
        facts.append([wording_verify.MERGED_AT, str(folder / "export" / "merged") + old])
    if not links and not facts:
        return {"line": wording_verify.NOTHING_WRITTEN, "tone": "muted"}
    value: Value = {"links": links, "facts": facts}
    if verification is not None:
        value |= {"why_label": wording_verify.CARD_LABEL, "why": _card(manifest, folder, verification)}
    return value


def _card(manifest: Manifest, folder: Path, verification: Verification) -> str:
    command = f"python -m core verify --case {folder}"
    files = {**manifest.model.files, **{f"adapter/{k}": v for k, v in manifest.model.adapter_files.items()}}
    lines = [command, f"seed {manifest.seed}"]
    lines += [f"{name} {version}" for name, version in verification.versions.items()]
    lines += [f"SHA-256 {digest}  {name}" for name, digest in files.items()]
    return "\n".join(lines)
