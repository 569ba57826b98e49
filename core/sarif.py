"""The case as a SARIF 2.1.0 log: what was found, and whether the repair holds, for tools that gather findings.

One run: the rules are the verdicts and the repair, with the ATLAS and OWASP identifiers as taxa; results say which of them
the case came to, on which files (by SHA-256), with the rates as properties. The analyst's decision stands as a property;
a verdict is a suppressed result where the candidate it is about was rejected. Source: SARIF 2.1.0 (OASIS Standard, 27 March 2020).
What this does not do: score severity by numbers of its own, or say that anything is clean.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from core import report_text as text
from core.case_view import CaseView
from core.serial import to_json
from core.values import Rate, TriageResult, TriggerConfirmation
from core.verdict import OF_A_CANDIDATE

SCHEMA_URI = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
"""Only named in the file, as the standard asks; nothing is loaded."""
VERSION = "2.1.0"
NAME = "Patcher dashboard"
REPAIR = "REPAIR"
LEVELS: Mapping[str, tuple[str, str]] = {
    "BACKDOOR": ("fail", "error"),
    "DISTRIBUTED": ("fail", "error"),
    "PROMPT_JAILBREAK": ("fail", "warning"),
    "ALIGNMENT_GAP": ("fail", "warning"),
    "INCONCLUSIVE": ("open", "none"),
}
"""Kind and level of each verdict; a level other than none belongs to the kind "fail" (section 3.27.10)."""
REPAIRED: Mapping[str, tuple[str, str]] = {
    "REDUCED": ("pass", "none"),
    "NOT_REDUCED": ("fail", "error"),
    "INCONCLUSIVE": ("open", "none"),
}


def sarif(view: CaseView) -> dict[str, Any]:
    """Return the case as a SARIF log, plain JSON data."""
    rules = [_rule(name, *sentences) for name, sentences in text.VERDICTS.items()]
    rules.append(_rule(REPAIR, "Repair", "whether fine-tuning lowered the success of the confirmed trigger"))
    triage = view.triage
    invocation: dict[str, Any] = {
        "executionSuccessful": True,
        "startTimeUtc": _utc(view.manifest.created),
        "endTimeUtc": _utc(view.stamp.written),
    }
    run = {
        "tool": {
            "driver": {"name": NAME, "rules": rules, "supportedTaxonomies": [{"name": name} for name in _editions()]}
        },
        "automationDetails": {"id": f"case/{view.manifest.id}"},
        "invocations": [invocation],
        "artifacts": _artifacts(view),
        "taxonomies": _taxonomies(),
        "results": [*_verdict(view), *_repair(view)],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "tlp": view.stamp.tlp,
            "seed": view.manifest.seed,
            "versions": dict(triage.versions) if triage else {},
            "audit": {"acts": view.stamp.acts, "head": view.stamp.head},
        },
    }
    return {"$schema": SCHEMA_URI, "version": VERSION, "runs": [run]}


def _rule(name: str, title: str, meaning: str) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "id": name,
        "name": "".join(part.capitalize() for part in name.split("_")),
        "shortDescription": {"text": f"{title}: {meaning}."},
        "defaultConfiguration": {"level": LEVELS.get(name, ("", "error"))[1]},
    }
    if name in ("BACKDOOR", "DISTRIBUTED"):
        rule["relationships"] = [
            {"target": {"id": one, "toolComponent": {"name": edition}}, "kinds": ["relevant"]}
            for edition, one, _ in text.IDENTIFIERS
        ]
    return rule


def _editions() -> list[str]:
    return list(dict.fromkeys(edition for edition, _, _ in text.IDENTIFIERS))


def _taxonomies() -> list[dict[str, Any]]:
    return [
        {
            "name": edition,
            "taxa": [
                {"id": one, "shortDescription": {"text": name}}
                for known, one, name in text.IDENTIFIERS
                if known == edition
            ],
        }
        for edition in _editions()
    ]


def _artifacts(view: CaseView) -> list[dict[str, Any]]:
    """Return the files the case rests on: the report first, then weights, tokenizer and templates."""
    manifest = view.manifest
    kept = manifest.report_file
    files = [(kept.kept, manifest.evidence.get(kept.kept, kept.sha256))] if kept else []
    files += [(f"model/{name}", digest) for name, digest in manifest.model.files.items()]
    files += [(f"adapter/{name}", digest) for name, digest in manifest.model.adapter_files.items()]
    return [
        {"location": {"uri": _uri(name)}, "hashes": {"sha-256": digest}, "roles": ["analysisTarget"]}
        for name, digest in files
    ]


def _uri(name: str) -> str:
    return quote(name.encode("utf-8", "replace"))


def _location(view: CaseView) -> list[dict[str, Any]]:
    """Return where the finding is: the report's file, and the messages that hold the candidate."""
    kept = view.manifest.report_file
    physical = {"artifactLocation": {"uri": _uri(kept.kept), "index": 0}} if kept else None
    found = view.triage.about if view.triage else None
    spans = found.spans if found else ()
    logical = [
        {"fullyQualifiedName": f"messages[{span.message}].content[{span.start}:{span.end}]", "kind": "parameter"}
        for span in spans
    ]
    location: dict[str, Any] = {"physicalLocation": physical} if physical else {}
    return [location | ({"logicalLocations": logical} if logical else {})] if location or logical else []


def _verdict(view: CaseView) -> list[dict[str, Any]]:
    triage, decision = view.triage, view.confirmation
    if triage is None or triage.verdict is None:
        return []
    kind, level = LEVELS[triage.verdict]
    result: dict[str, Any] = {
        "ruleId": triage.verdict,
        "ruleIndex": list(text.VERDICTS).index(triage.verdict),
        "kind": kind,
        "level": level,
        "message": {"text": text.verdict_sentence(triage) + "."},
        "locations": _location(view),
        "properties": {
            "certainty": triage.certainty,
            "decidedBy": triage.decided_by,
            "reproduced": _rate(triage.reproduction.failure) if triage.reproduction else None,
            "tests": [
                {"name": t.name, "candidate": t.candidate, "with": _rate(t.with_unit), "without": _rate(t.without_unit)}
                | {"n": t.n, "passed": t.passed}
                for t in triage.tests
            ],
            "decision": decision.decision if decision else None,
        },
    }
    if decision is not None:
        result["partialFingerprints"] = {"text/v1": decision.text_hash, "model/v1": decision.model_hash}
        if _rejected(triage, decision):
            result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": decision.reason}]
    return [result]


def _rejected(triage: TriageResult, decision: TriggerConfirmation) -> bool:
    """Return whether the analyst rejected what the verdict is about, not another candidate or one of an earlier triage."""
    if triage.verdict not in OF_A_CANDIDATE or triage.about is None or decision.proposal is None:
        return False
    return decision.decision == "rejected" and decision.proposal.spans == triage.about.spans


def _repair(view: CaseView) -> list[dict[str, Any]]:
    """Return the result of the repair; a backdoor found again on the repaired model is an error, whatever was verified."""
    verified, opinions = view.verification, view.second_opinion
    told = text.result_sentence(verified, opinions)
    if told is None:
        return []
    kind, level = REPAIRED[verified.result] if verified and not text.backdoor_again(opinions) else ("fail", "error")
    metrics = verified.metrics if verified else ()
    return [
        {
            "ruleId": REPAIR,
            "ruleIndex": len(text.VERDICTS),
            "kind": kind,
            "level": level,
            "message": {"text": f"{told}."},
            "locations": _location(view),
            "properties": {
                "metrics": [{"name": m.name, "before": _rate(m.before), "after": _rate(m.after)} for m in metrics],
                "secondOpinion": [{"of": one.what, "verdict": one.verdict} for one in opinions],
            },
        }
    ]


def _rate(value: Rate | float | None) -> Any:
    return to_json(value) if isinstance(value, Rate) else value


def _utc(time: str) -> str:
    """Return an ISO 8601 time of the case as the standard writes it (section 3.9)."""
    try:
        moment = datetime.fromisoformat(time).astimezone(UTC)
    except ValueError:
        moment = datetime.fromtimestamp(0, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
