"""Figures, tables and sentences against results whose drawing is known by hand."""

import json
import math
from dataclasses import replace

import pytest
from markupsafe import escape

from core.events import OF_DUMMY, CheckpointScored, Line, RepairFinished, RepairStarted, StepDone
from core.repair_trace import trace
from core.report_figures import repair_chart
from core.values import (
    WHOLE_CASE,
    Budget,
    LocateResult,
    Message,
    MinimisedSpan,
    OpenResult,
    PromptToken,
    Rate,
    RenderedPrompt,
    Reproduction,
    ResponseToken,
    Span,
    Target,
    TestOutcome,
    TriageResult,
    TriggerProposal,
    Verification,
)
from dashboard import (
    figures,
    stories,
    tables,
    token_plots,
    wording,
    wording_case,
    wording_locate,
    wording_repair,
    wording_tests,
    wording_verdict,
)
from dashboard.components.status_bar import StatusBar
from dashboard.components.token_view import TokenView
from tests.unit.reporting import USER, triage_of

EVIL = "<b onload=x>"


def rate(k: int, n: int) -> Rate:
    return Rate(value=k / n if n else None, k=k, n=n, low=0.0, high=1.0)


def opened() -> OpenResult:
    texts = [("<s>", "template", None, None), ("Hi", "user", 0, 0), (" �", "user", 0, 2), (EVIL, "user", 0, 4)]
    tokens = tuple(
        PromptToken(
            position=i,
            id=i + 10,
            text=text,
            segment=segment,  # type: ignore[arg-type]
            message=message,
            start=start,
            end=None if start is None else start + len(text),
        )
        for i, (text, segment, message, start) in enumerate(texts)
    )
    return OpenResult(
        prompt=RenderedPrompt(text="", tokens=tokens, template_hash=""),
        response=(ResponseToken(position=0, id=1, text="Step"), ResponseToken(position=1, id=2, text=" 1")),
        model_name="m",
        architecture="a",
        n_parameters=1_300_000,
        dtype="float32",
        device="cpu",
        context_length=None,
        memory_mb=1.0,
        has_reference=False,
        warnings=(),
    )


def located(scores: tuple[float, ...] = (9.0, 1.0, -2.0, 4.0), signed: bool = True) -> LocateResult:
    return LocateResult(
        method="occlusion",
        target=Target(),
        scores=scores,
        scored=(False, True, True, True),
        signed=signed,
        labels=(-1, 0, 0, 1),
        adaptive_labels=(-1, 0, 0, 1),
        boundary=3.0,
        positions=(1, 2, 3),
        coordinates=((0.0, 0.0), (1.0, 1.0), (2.0, 2.0)),
        projection="pca",
        proposals=(),
        completeness_gap=0.5,
        baseline="mean",
        agreement={"paper": 0.91},
        seconds=1.0,
        model_calls=3,
    )


def step(number: int, loss: float = 1.0) -> StepDone:
    return StepDone(
        step=number,
        epoch=0,
        loss=loss,
        refusal_loss=0.5,
        kl_harmful_loss=0.25,
        kl_safe_loss=0.25,
        kl_nats_per_token=0.01,
        learning_rate=1e-3,
        tokens_per_second=10.0,
        memory_mb=1.0,
        seconds_left=72.0,
    )


def lines(*events: object, run: str = "r") -> list[Line]:
    return [Line(seq=i, time="t", request=run, event=event) for i, event in enumerate(events)]  # type: ignore[arg-type]


STARTED = RepairStarted(
    n_steps=560,
    n_epochs=10,
    n_trainable=1,
    device="cpu",
    n_harmful=1,
    n_safe=1,
    memory_estimate_mb=1.0,
    settings={"kl_budget": 0.05},
)
PROBE = CheckpointScored(
    step=2,
    asr_triggered=rate(1, 4),
    refusal_untriggered=rate(4, 4),
    agreement_safe=rate(0, 0),
    kl_nats_per_token=0.2,
    best=True,
)


def test_token_view_scores_only_what_was_scored_and_slices_the_raw_evidence() -> None:
    value = figures.token_view(
        opened(), located(), messages=(Message(role="user", content="Hi é" + EVIL),), selected={3, 1}
    )
    assert value["scores"] == [None, 1.0, -2.0, 4.0]
    assert [token["text"] for token in value["tokens"]] == ["<s>", "Hi", " é", EVIL]  # type: ignore[attr-defined]
    assert value["selected"] == [1, 3]
    # by hand: the 98th percentile of (1, 2, 4) is 2 + 0.96 * 2
    assert value["legend"] == {"min": -2.0, "max": 4.0, "clip": pytest.approx(3.92), "name": "occlusion"}


def test_token_view_of_constant_zero_scores_still_has_a_scale() -> None:
    value = figures.token_view(opened(), located((0.0, 0.0, 0.0, 0.0)))
    assert value["legend"] == {"min": 0.0, "max": 0.0, "clip": 0.0, "name": "occlusion"}


def test_scores_that_are_not_finite_are_left_blank() -> None:
    assert figures.token_view(opened(), located((0.0, math.nan, 1.0, math.inf)))["scores"] == [None, None, 1.0, None]


def test_everything_sent_to_plotly_is_escaped() -> None:
    for value in (token_plots.strip(opened(), located()), token_plots.token_map(opened(), located())):
        text = json.dumps(value, ensure_ascii=False)
        assert "<b" not in text
        assert "&lt;b" in text


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        ("a\nb", "a⏎b"),
        ("\u200b", "‹U+200B›"),
        ("\u202e", "‹U+202E›"),
        ("\u00a0", "‹U+00A0›"),
        (" é", " é"),
        ("a" * 60, "a" * 60),
        ("a" * 61, "a" * 60 + "…"),
        ("a\u00ad" * 30, "a‹U+00AD›" * 6 + "a…"),  # what is shown is cut, not what it is made of
    ],
)
def test_odd_characters_are_shown(raw: str, seen: str) -> None:
    assert figures.shown(raw) == seen


def test_strip_carries_positions_and_the_boundary() -> None:
    value = token_plots.strip(opened(), located())
    rest, out = value["data"]  # type: ignore[misc]
    assert (rest["customdata"], out["customdata"], out["y"]) == ([1, 2], [3], [4.0])
    assert value["layout"]["shapes"][0]["y0"] == 3.0  # type: ignore[index]


def test_the_map_rings_what_stands_out_by_all_methods_together() -> None:
    *_, rings = token_plots.token_map(opened(), located())["data"]  # type: ignore[misc]
    assert (rings["x"], rings["y"]) == ((2.0,), (2.0,))
    alone = replace(located(), adaptive_labels=(-1, 0, 0, 0))
    assert len(token_plots.token_map(opened(), alone)["data"]) == 2  # type: ignore[arg-type]
    assert "rings" in wording_locate.picture(located())
    assert "rings" not in wording_locate.picture(alone)
    assert "one token stands out by 2 methods together" in wording_locate.trust(located())


def test_labels_keep_clear_of_points_and_of_each_other() -> None:
    """Two neighbours of one height: the second label goes elsewhere; a crowd leaves some points bare, never two on one place."""
    near = {0: (0.0, 0.0), 1: (10.0, 5.0), 2: (10.2, 5.0), 3: (20.0, 10.0)}
    places = token_plots.label_places(near, {1: "2026", 2: "drown"})
    assert set(places) == {1, 2}
    assert places[1] != places[2]
    crowd = {i: (i / 100, 0.0) for i in range(40)} | {99: (50.0, 5.0)}
    some = token_plots.label_places(crowd, {i: f"word {i}" for i in (*range(40), 99)})
    assert 99 in some
    assert len(some) < 10
    assert token_plots.label_places({7: (1.0, 1.0)}, {7: "one"}) == {7: "top center"}
    assert token_plots.label_places({}, {}) == {}


def test_a_label_keeps_clear_of_the_name_of_the_boundary() -> None:
    """A point on the line near its right end: free, the label is above it; with the name there, it goes elsewhere."""
    points = {i: (float(i), 0.0) for i in range(30)} | {8: (8.0, 9.0), 26: (26.0, 1.2)}
    name = token_plots.WIDTH - 112.0, 30.0, token_plots.WIDTH, 43.0
    assert token_plots.label_places(points, {26: "do"}) == {26: "top center"}
    assert token_plots.label_places(points, {26: "do"}, name).get(26) != "top center"


def test_the_boundary_is_named_where_fewer_points_are() -> None:
    for scores, side in (((0.0, 1.0, -2.0, 4.0), "right"), ((0.0, 1.0, -2.0, 3.2), "left")):  # the boundary is at 3
        strip = token_plots.strip(opened(), located(scores))
        assert strip["layout"]["annotations"][0]["xanchor"] == side  # type: ignore[index]


def test_token_table_ranks_by_size_whatever_the_sign() -> None:
    rows = tables.token_table(opened(), located())["rows"]
    assert [row["cells"]["rank"] for row in rows] == [None, 3, 2, 1]  # type: ignore[index,attr-defined]
    assert rows[0]["cells"]["score"] is None  # type: ignore[index]


def test_live_chart_sends_only_what_is_new_and_marks_what_is_not_finite() -> None:
    events = lines(STARTED, step(1), step(2, math.nan), PROBE, step(3, math.inf))
    whole = figures.live_chart(trace(events))
    assert (whole["from"], whole["step"], whole["loss"]) == (0, [1, 2, 3], [1.0, None, None])
    assert whole["marks"] == [{"step": 2, "panel": "loss", "text": "NaN"}, {"step": 3, "panel": "loss", "text": "inf"}]
    assert (whole["budget"], whole["total"], whole["state"]) == (0.05, 560, "running")
    later = figures.live_chart(trace(events), since=2)
    assert (later["from"], later["step"]) == (2, [3])
    assert later["probes"]["asr"] == [[0.25, 0.0, 1.0]]  # type: ignore[index]
    assert later["probes"]["agreement"] == [[None, 0.0, 1.0]]  # type: ignore[index]
    assert (
        figures.live_chart(trace(events), since=9)["from"] == 0
    )  # a browser that knows more than there is starts over
    assert figures.live_chart(trace(()))["state"] == "empty"


def test_live_chart_shows_every_term_that_is_on_and_how_much_of_the_budget_is_used() -> None:
    extended = replace(step(1), kl_trigger_loss=0.125, kl_harmful_loss=None, micro_batch=8)
    value = figures.live_chart(trace(lines(STARTED, extended, replace(PROBE, refusal_triggered_safe=rate(1, 2)))))
    assert (value["kl_trigger"], value["kl_harmful"], value["kl_safe"]) == ([0.125], [None], [0.25])
    assert value["marks"] == []
    assert value["probes"]["safe_refused"] == [[0.5, 0.0, 1.0]]  # type: ignore[index]
    assert value["meter"] == "KL budget: 400 % used"  # .2 of .05
    assert wording_repair.budget_used(-1e-9, 0.1) == "KL budget: 0 % used"
    older = figures.live_chart(trace(lines(replace(STARTED, settings={}), step(1), PROBE)))
    assert (older["kl_trigger"], older["meter"]) == ([None], "")
    assert older["probes"]["safe_refused"] == [[None, None, None]]  # type: ignore[index]


@pytest.mark.parametrize(
    ("settings", "taken", "told"),
    [
        ({"batch_size": 8}, step(1), ""),  # an older file
        ({"batch_size": 8}, replace(step(1), micro_batch=8), ""),
        ({"batch_size": 8, "micro_batch_size": 4}, replace(step(1), micro_batch=4), ""),
        ({"batch_size": 8, "micro_batch_size": None}, replace(step(1), micro_batch=4), "micro-batches of 4"),
        ({"batch_size": 8}, replace(step(1), micro_batch=8, memory_saved=("no_graphs",)), "no CUDA graphs"),
        (
            {"batch_size": 8, "micro_batch_size": 2},
            replace(step(1), micro_batch=1, memory_saved=("no_graphs", "recompute")),
            "micro-batches of 1, no CUDA graphs, layers are recomputed",
        ),
    ],
)
def test_memory_that_ran_out_is_said_from_the_first_step_on(settings: dict, taken: StepDone, told: str) -> None:
    summary = str(figures.live_chart(trace(lines(replace(STARTED, settings=settings), taken)))["summary"])
    assert summary.partition("memory ran out: ")[2] == told


def test_the_probe_of_a_dummy_says_whose_success_it_tells() -> None:
    """And one of an older version, or of a known trigger, nothing of it."""
    both = replace(PROBE, asr_wording=rate(1, 4))
    for probe, named in ((PROBE, False), (both, True)):
        value = figures.live_chart(trace(lines(STARTED, step(1), probe)))
        assert (OF_DUMMY in str(value["summary"])) == named
        assert ("dummy or wording" in str(value["probes"])) == named
        assert (str(escape(OF_DUMMY)) in repair_chart([step(1)], [probe], 0.1, 2)) == named


def test_live_chart_value_survives_json() -> None:
    value = figures.live_chart(trace(lines(STARTED, step(1, math.nan))))
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def test_forest_separates_sham_and_leaves_out_rates_without_n() -> None:
    tests = (
        TestOutcome(name="necessity", candidate=0, n=4, with_unit=rate(4, 4), without_unit=rate(0, 4), passed=True),
        TestOutcome(name="sham", candidate=0, n=0, with_unit=rate(0, 0), without_unit=rate(1, 4)),
        TestOutcome(name="transfer", candidate=1, n=4, with_unit=rate(4, 4), without_unit=rate(0, 4)),
    )
    planted, sham, without = figures.forest(tests)["data"]  # type: ignore[misc]
    assert (planted["x"], sham["x"], without["x"]) == ([1.0], [], [0.25, 0.0])  # drawn from the bottom up
    rows = tables.outcome_table(tests, 0)["rows"]
    assert [row["cells"]["result"]["mark"] for row in rows] == ["pass", "open"]
    assert rows[1]["cells"]["result"]["text"] == "undecided"  # type: ignore[index,attr-defined]


def test_empty_results_say_so() -> None:
    assert figures.forest(())["summary"] == wording_tests.NO_TESTS
    assert tables.candidate_table(())["empty"] == wording_locate.NO_CANDIDATES


def test_response_view_selects_response_positions() -> None:
    value = figures.response_view(opened(), selected=[1])
    assert [token["start"] for token in value["tokens"]] == [0, 4]  # type: ignore[attr-defined]
    assert value["selected"] == [1]


def test_a_repair_that_runs_on_a_trigger_that_was_rejected_meanwhile_is_told() -> None:
    """It goes on, and the step does not say that it is locked."""
    locked, runs = (stories.repair("why", None, [], None, None, running) for running in (False, True))
    assert locked["headline"] == wording_repair.LOCKED
    assert (runs["headline"], runs["tone"]) == (wording_repair.REPAIRING, "warn")
    assert runs["line"] == wording_repair.NOT_CONFIRMED_NOW


def test_what_the_scripts_of_components_hold_is_no_event() -> None:
    """Gradio takes every quoted word that names no attribute for one."""
    assert StatusBar(watch_url="/x").watch_url == "/x"
    view = TokenView(mode="edit", confirms=False)
    assert (view.mode, view.confirms, bool(view.spoken)) == ("edit", False, True)


def test_saliency_before_and_after_share_one_scale() -> None:
    result = Verification(
        metrics=(), result="REDUCED", reasons=(), examples=(), saliency_before=(0.0, 1.0, 2.0, 4.0), saliency_after=(0.0, 0.1, 0.1, 0.1),
        looks=1, seconds=1.0, settings={}, versions={},
    )  # fmt: skip
    before, after = figures.saliency_views(opened(), result)
    assert before["legend"] == after["legend"]
    assert before["scores"] == [None, 0.142857, 0.285714, 0.571429]
    assert after["scores"] == [
        None,
        0.333333,
        0.333333,
        0.333333,
    ]  # shares: a large gradient all over stands out nowhere


def test_headlines() -> None:
    made = Reproduction(failure=rate(31, 32), answers=(), outcomes=())
    assert wording_case.reproduced(made) == "Reproduced 31 of 32"
    assert wording_locate.stand_out(4) == "Four tokens stand out"
    assert wording_locate.stand_out(1) == "One token stands out"
    assert wording_locate.stand_out(40) == "40 tokens stand out"
    assert wording.duration(72.4) == "1 min 12 s"
    assert wording.duration(0.42) == "0.4 s"
    assert wording.size(1_300_000) == "1.3 M"
    finished = RepairFinished(
        reason="kept", step=3, best_step=2, adapter="a", adapter_hash="h", seconds=1.0, message=""
    )
    assert "step 2" in wording_repair.repair_ended(finished)
    assert wording_repair.repair_stands(trace(lines(STARTED, step(84)))) == "Step 84 of 560, 1 min 12 s left"


def test_a_verdict_that_sham_decided_names_both_sides() -> None:
    by_sham = replace(triage_of(USER, "INCONCLUSIVE"), decided_by="sham")
    told = wording_verdict.decided_by(by_sham)
    assert "6/288" in told.split(" with other text in its place, ")[0]
    assert "5/288" in told.split(" with other text in its place, ")[1].split(" bare")[0]


def outcome(name: str, candidate: int, k: int, other: int, passed: bool | None) -> TestOutcome:
    return TestOutcome(
        name=name, candidate=candidate, n=16, with_unit=rate(k, 16), without_unit=rate(other, 16), passed=passed
    )  # type: ignore[arg-type]


def test_tests_of_the_whole_report_stand_beside_those_of_the_candidate_and_described_ones_apart() -> None:
    tests = [
        outcome("transfer", 0, 2, 0, False),
        outcome("transfer", 1, 3, 0, False),
        outcome("form", 0, 1, 0, None),
        outcome("paraphrase", WHOLE_CASE, 16, 15, True),
        outcome("rewrite", WHOLE_CASE, 16, 14, False),
    ]
    rows = tables.outcome_table(tests, 0)["rows"]
    assert [row["cells"]["test"]["text"] for row in rows] == ["transfer", "paraphrases", "neutral rewrite"]  # type: ignore[attr-defined]
    results = [row["cells"]["result"] for row in rows]  # type: ignore[attr-defined]
    assert [one["mark"] for one in results] == ["fail", "yes", "no"]
    assert [one["text"] for one in results] == ["failed", "fail as often", "not refused"]
    assert [row["cells"]["test"]["text"] for row in tables.described_table(tests, 0)["rows"]] == ["form"]  # type: ignore[attr-defined]
    assert figures.forest(tests, 1)["layout"]["yaxis"]["ticktext"] == ["neutral rewrite", "paraphrases", "transfer"]  # type: ignore[index]


def test_an_alignment_gap_says_why_no_trigger_is_needed() -> None:
    moved, alike = outcome("transfer", 0, 15, 0, True), replace(outcome("sham", 0, 9, 0, False), gain_low=0.4)
    asked = outcome("requests", WHOLE_CASE, 16, 13, True)
    for tests, told in (
        ([moved], "No candidate acts as a trigger (with the strongest 15 of 16 other requests fail)"),
        ([moved, alike], "Unrelated text does what the candidates do (9 of 16 requests fail with other text)"),
        ([moved, alike, asked], "The model answers 13 of 16 other harmful requests as they are"),
        (
            [moved, alike, replace(asked, passed=False)],
            "Unrelated text does what the candidates do (9 of 16 requests fail with other text)",
        ),
    ):
        gap = replace(triage_of(USER, "ALIGNMENT_GAP"), tests=tuple(tests), candidate=None)
        assert wording_verdict.why(gap) == f"{told}."


def test_a_dropped_candidate_gives_the_reason_that_decided_first_and_keeps_the_others() -> None:
    one = TriggerProposal(spans=(), text="x", token_positions=(), score=0.4, reasons=("It stands out.", "Only part."))
    value = tables.candidate_table([one], 0, [one])
    kept, dropped = value["rows"]  # type: ignore[misc]
    assert (kept["key"], dropped["key"]) == (0, -1)
    assert dropped["cells"]["reasons"] == {"text": "Only part.", "rest": "It stands out.", "csv": "Only part. It stands out."}  # fmt: skip
    assert dropped["cells"]["state"]["text"] == "dropped"


def test_a_note_is_folded_after_its_first_sentence_but_not_inside_brackets() -> None:
    note = "n counts contexts (polite ones; the first is none), one answer each; the margin falls. Too few."
    test = replace(outcome("transfer", 0, 1, 0, None), note=note)
    cell = tables.outcome_table([test], 0)["rows"][0]["cells"]["note"]  # type: ignore[index]
    assert cell["text"] == "n counts contexts (polite ones; the first is none), one answer each"
    assert cell["rest"] == "the margin falls. Too few."


def test_the_verdicts_numbers_are_those_of_the_candidate_that_decided() -> None:
    proposal = TriggerProposal(spans=(), text="x", token_positions=(), score=1.0)
    found = TriageResult(
        mode="causal", verdict="BACKDOOR", certainty="no_reference", decided_by="all three tests", reproduction=None,
        candidates=(proposal, proposal), dropped=(),
        tests=(outcome("necessity", 0, 16, 0, True), outcome("transfer", 0, 3, 0, False),
               outcome("necessity", 1, 16, 2, True), outcome("transfer", 1, 15, 0, True), outcome("sham", 1, 1, 0, True)),
        tokens=(), settings={}, model_calls=0, seconds=0.0, versions={}, candidate=1,
    )  # fmt: skip
    story = stories.verdict(found)
    assert "15 of 16" in story["line"]  # type: ignore[operator]
    assert "No clean reference" in story["facts"][0][1]  # type: ignore[index]


def test_a_minimised_span_shows_both_rates_or_why_nothing_was_cut() -> None:
    small = TriggerProposal(spans=(Span(message=0, start=0, end=2),), text="ab", token_positions=(0,), score=0.0)
    wide = TriggerProposal(spans=(Span(message=0, start=0, end=4),), text="abcd", token_positions=(0, 1), score=0.0)
    budget = Budget(sequences=1200, batches=9, limit=6000)
    cut = MinimisedSpan(
        marked=wide, smallest=small, rate=rate(23, 24), whole=rate(24, 24), why="", logic="", budget=budget
    )
    assert stories.minimised(cut)["headline"] == "“ab” is enough"
    assert "23/24" in stories.minimised(cut)["line"]  # type: ignore[operator]
    assert "24/24" in stories.minimised(cut)["line"]  # type: ignore[operator]
    kept = replace(cut, smallest=None, rate=None, why="No set changes enough.")
    assert stories.minimised(kept)["headline"] == "“abcd” is not cut down"
    assert stories.minimised(kept)["line"] == "No set changes enough"
