"""Attributions gather in one archive, and nothing is drawn from a file that no act wrote as it is."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from core import chat, evidence, locate_stage
from core.casefile import Case
from core.values import LocateResult, Target
from tests.unit.test_casefile import make_case

FIRST = Target(kind="first_k", k=2)


@pytest.fixture
def run(tmp_path: Path, tiny_loaded) -> SimpleNamespace:
    """Return what the stage needs of a run, on a tiny random model."""
    case = make_case(tmp_path)
    failure = chat.bind(tiny_loaded.tokenizer, case.report)
    return SimpleNamespace(case=case, loaded=tiny_loaded, failure=failure, progress=lambda *_: None)


def stored(case: Case) -> dict[str, np.ndarray]:
    """Return what the archive holds."""
    with np.load(case.path / evidence.ARRAYS, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def others(run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Locate once more; return which attributions of the case it went by, and whether each had its profile."""
    seen: list[tuple[str, bool]] = []
    real = locate_stage.locating.locate

    def watched(*args: object, **named: object) -> object:
        seen.extend((one.method, one.profile is not None) for one in named["others"])  # type: ignore[attr-defined]
        return real(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(locate_stage.locating, "locate", watched)
    locate_stage.locate_one(run, "gradient_norm", FIRST)  # type: ignore[arg-type]
    monkeypatch.undo()
    return seen


def test_attributions_gather_in_one_archive_that_their_acts_know(run, monkeypatch) -> None:
    attribution, result, name = locate_stage.locate_one(run, "gradient_x_input", FIRST)
    assert others(run, monkeypatch) == [("gradient_x_input", True)]
    kept = stored(run.case)
    keys = [one.removeprefix("score:") for one in kept if one.startswith("score:")]
    assert [key.split("-")[0] for key in keys] == ["gradient_x_input", "gradient_norm"]
    assert kept[f"score:{keys[0]}"].tolist() == pytest.approx(result.scores)
    assert kept[f"profile:{keys[0]}"].tolist() == attribution.profile.tolist()
    assert kept["token_ids"].tolist() == list(run.failure.prompt.ids)
    assert kept["offsets"].shape == (len(run.failure.prompt.ids), 3)
    assert evidence.changed_files(run.case) == []
    assert {name, evidence.ARRAYS} <= set(evidence.results(run.case))


def test_a_changed_archive_is_named_and_nothing_is_taken_from_it(run, monkeypatch) -> None:
    locate_stage.locate_one(run, "gradient_x_input", FIRST)
    path = run.case.path / evidence.ARRAYS
    path.write_bytes(b"PK" + bytes(64))
    assert evidence.changed_files(run.case) == [evidence.ARRAYS]
    assert others(run, monkeypatch) == [("gradient_x_input", False)]
    assert [one.split("-")[0] for one in stored(run.case) if one.startswith("score:")] == ["score:gradient_norm"]
    assert evidence.changed_files(run.case) == []


def test_a_changed_result_is_not_what_others_are_compared_with(run, monkeypatch) -> None:
    _, result, name = locate_stage.locate_one(run, "gradient_x_input", FIRST)
    assert isinstance(result, LocateResult)
    run.case.write(name, {"forged": True})
    assert others(run, monkeypatch) == []
