"""Attributions gather in one archive, and nothing is drawn from a file that no act wrote as it is."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from core import chat, evidence, locate_stage
from core.casefile import Case
from core.projection import project
from core.values import Attribution, LocateResult, Projection, Target
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


def drawn_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Draw the pictures of a case again; return by method what each was drawn from."""
    seen: dict[str, np.ndarray] = {}

    def watched(attribution: Attribution) -> Projection:
        assert attribution.profile is not None
        seen[attribution.method] = attribution.profile
        return project(attribution, allow_umap=False)

    monkeypatch.setattr(locate_stage, "umap_is_warm", lambda: True)
    monkeypatch.setattr(locate_stage, "project", watched)
    assert locate_stage.redraw_pictures(case)
    return seen


@pytest.mark.parametrize("lender", [(), ("occlusion",)])
def test_a_picture_is_drawn_again_from_what_it_was_drawn_from(run, monkeypatch, lender) -> None:
    """Not from the first profile at hand, which explains another target; its own is kept with the case."""
    monkeypatch.setattr("core.locating.umap_is_warm", lambda: False)
    first, _, _ = locate_stage.locate_one(run, "gradient_x_input", FIRST)
    lent = [locate_stage.locate_one(run, method, Target())[0].profile for method in lender]
    paper, result, _ = locate_stage.locate_one(run, "paper", Target())
    assert result.projection == "pca"
    assert paper.profile is None
    assert paper.borrowed is not None
    assert len(paper.borrowed) == len(run.failure.response_ids) != len(first.profile)
    assert all(paper.borrowed.tolist() == one.tolist() for one in lent)
    assert stored(run.case)["picture:paper-response"].tolist() == paper.borrowed.tolist()
    assert "profile:paper-response" not in stored(run.case)
    seen = drawn_again(run.case, monkeypatch)
    assert seen["paper"].tolist() == paper.borrowed.tolist()
    assert seen["gradient_x_input"].tolist() == first.profile.tolist()


def test_cases_that_hold_no_borrowed_profile_take_one_for_the_same_target(run, monkeypatch) -> None:
    """Those of older versions; without one, the picture stays as it is."""
    monkeypatch.setattr("core.locating.umap_is_warm", lambda: False)
    real = locate_stage.locating.locate

    def older(*args: object, **named: object) -> object:
        attribution, result = real(*args, **named)
        return replace(attribution, borrowed=None), result

    monkeypatch.setattr(locate_stage.locating, "locate", older)
    locate_stage.locate_one(run, "gradient_x_input", FIRST)
    locate_stage.locate_one(run, "paper", Target())
    assert "paper" not in drawn_again(run.case, monkeypatch)
    lent, _, _ = locate_stage.locate_one(run, "occlusion", Target())
    assert drawn_again(run.case, monkeypatch)["paper"].tolist() == lent.profile.tolist()
