"""One history of a repair, whatever stopped it in between."""

from dataclasses import replace

from core.events import Line, RepairFinished
from core.repair_trace import RepairTrace, trace
from dashboard import figures, wording, wording_repair
from tests.unit.test_figures import PROBE, STARTED, step

STOPPED = RepairFinished(
    reason="kept", step=3, best_step=2, adapter="repair/best", adapter_hash="a", seconds=1.0, message="Stopped."
)


def lines(**requests: tuple) -> list[Line]:
    events = [(name, event) for name, part in requests.items() for event in part]
    return [Line(seq=i, time="t", request=name, event=event) for i, (name, event) in enumerate(events)]


def probe(number: int):
    return replace(PROBE, step=number)


FIRST = (STARTED, probe(0), step(1), step(2), probe(2), step(3), STOPPED)
RESUMED = replace(STARTED, resumed_at=2)


def test_nothing_was_repaired() -> None:
    assert trace(()) == RepairTrace()
    assert wording_repair.repair_stands(trace(())) == "Not started"


def test_a_resumed_repair_goes_on_from_its_checkpoint() -> None:
    whole = trace(lines(a=FIRST, b=(RESUMED, step(3, 9.0), step(4))))
    assert (whole.run, whole.request, whole.finished) == ("a", "b", None)
    assert [(one.step, one.loss) for one in whole.steps] == [(1, 1.0), (2, 1.0), (3, 9.0), (4, 1.0)]
    assert [one.step for one in whole.probes] == [0, 2]
    assert figures.live_chart(whole)["state"] == "running"
    assert [one.step for one in trace(lines(a=FIRST, b=(RESUMED,))).steps] == [1, 2]  # step 3 is run again


def test_a_repair_from_the_start_has_a_history_of_its_own() -> None:
    again = trace(lines(a=FIRST, b=(STARTED,)))
    assert (again.run, again.steps, again.probes, again.finished) == ("b", (), (), None)
    assert wording_repair.repair_stands(again) == "Starting"


def test_a_repair_that_left_nothing_gives_way_to_the_one_before() -> None:
    """While it runs, or where it broke off, it is what a page shows, and not what a report tells of."""
    nothing = replace(STOPPED, reason="discarded", adapter=None, adapter_hash=None, best_step=None)
    before = trace(lines(a=FIRST))
    for broken in ((STARTED, step(1, 9.0)), (replace(STARTED, resumed_at=2), step(3, 9.0))):
        assert trace(lines(a=FIRST, b=broken)).finished is None
        assert trace(lines(a=FIRST, b=broken), ended=True) == replace(before, since=None)
        both = trace(lines(a=FIRST, b=(*broken, nothing)))
        assert both == replace(before, since=nothing)
        assert trace(lines(a=FIRST, b=(*broken, nothing), c=(STARTED, step(1), STOPPED))).run == "c"
    assert trace(lines(a=(*FIRST[:-1], nothing))).finished == nothing  # there was none before


def test_a_repair_that_broke_off_is_not_said_to_run() -> None:
    broken = trace(lines(a=FIRST[:-1]))
    value = figures.live_chart(broken, going=False)
    assert value["state"] == "ended"
    assert str(value["summary"]).startswith("Broke off at step 3 of 560")
    assert str(figures.live_chart(broken)["summary"]).startswith("Step 3 of 560")


def test_a_repair_that_was_asked_for_again_is_said_to_start() -> None:
    stopped = trace(lines(a=FIRST))
    assert str(figures.live_chart(stopped)["summary"]).startswith("Stopped")
    waiting = figures.live_chart(stopped, going=True)
    assert (waiting["state"], str(waiting["summary"])[:8]) == ("running", "Starting")


def test_the_chart_of_a_repair_says_when_another_text_was_confirmed_since() -> None:
    told = [str(figures.live_chart(trace(lines(a=FIRST)), outdated=old)["summary"]) for old in (False, True)]
    assert (told[0][:7], told[1]) == ("Stopped", wording.beside((wording_repair.OUTDATED, told[0])))
