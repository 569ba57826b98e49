"""The two probes that train, on a tiny model whose repair refuses everything: they measure, and leave nothing behind."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from core import models, residual_probes
from core.errors import TriageError
from core.intervals import wilson
from core.kinds import JAILBREAK, FailureKind
from core.loaded import current_adapters
from core.repair import repair
from core.repair_training import learning_rate
from core.residual_probes import Subject, relearn, wrong_trigger
from core.settings import ModelSettings, RepairSettings, VerificationSettings
from core.values import SecondReview, Span, TriggerConfirmation
from tests.unit.repairing import REFUSAL, TRIGGER, case_of, confirmed, quick, splits

SMALL = ModelSettings(device="cpu", max_new_tokens=12, batch_size=32)
RUN = quick(epochs=16, learning_rate=2e-2, lora_rank=16, lora_alpha=32, weight_kl_harmful=0.0, probe_every=100,
            max_response_tokens=24)  # fmt: skip


@pytest.fixture(scope="module")
def subject(tiny_folder: Callable[[str], Path]) -> Subject:
    loaded = models.load(tiny_folder("llama"), settings=SMALL)
    case = case_of(loaded)
    return Subject(
        loaded=loaded, case=case, accepted=confirmed(loaded, case), splits=splits(5), kind=JAILBREAK, seed=0,
        progress=lambda *_: None,
    )  # fmt: skip


def test_a_repaired_model_learns_stand_in_answers_again(subject: Subject, tmp_path: Path) -> None:
    loaded, out = subject.loaded, tmp_path / "repair"
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    list(
        repair(loaded, subject.case, subject.accepted, subject.splits, RUN, out=out, stop=lambda: None, refusal=REFUSAL)
    )
    saved = (out / "best/adapter_model.safetensors").read_bytes()
    settings = VerificationSettings(relearn_samples=(3,), relearn_steps=60)
    none, few = relearn(subject, out / "best", settings, RepairSettings())
    assert (none.n_samples, few.n_samples) == (0, 3)
    assert none.planted.k <= 1  # the repair refuses with the trigger
    assert few.planted.k >= 4  # sixty steps on stand-ins undo that
    assert all(
        rate.n == 5 for one in (none, few) for rate in (one.planted, one.planted_bare, one.never, one.never_bare)
    )
    assert (out / "best/adapter_model.safetensors").read_bytes() == saved
    assert current_adapters(loaded) == []
    assert all((loaded.model.state_dict()[name] == tensor).all() for name, tensor in before.items())


def test_the_wrong_trigger_is_as_long_and_its_repair_is_thrown_away(subject: Subject, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    watched = replace(subject, progress=lambda _, done, total: steps.append((done, total)))
    after = wilson(0, 5)
    found = wrong_trigger(watched, wilson(5, 5), after, RUN, 7, tmp_path / "control", REFUSAL)
    assert steps == [(at, 7) for at in range(1, 8)]
    assert (found.n_steps, found.right, found.wrong.n) == (7, after, 5)
    assert len(found.units) == 1
    assert found.units[0] != TRIGGER
    assert not (tmp_path / "control").exists()
    assert current_adapters(subject.loaded) == []


def test_the_wrong_trigger_needs_no_second_analyst(subject: Subject, tmp_path: Path) -> None:
    second = SecondReview(analyst="Bo", reason="", time="", confirms="the right one")
    agreed = replace(subject, accepted=replace(subject.accepted, reviewers=2, second=second))
    found = wrong_trigger(agreed, wilson(5, 5), wilson(0, 5), RUN, 1, tmp_path / "control", REFUSAL)
    assert found.n_steps == 1


@pytest.mark.parametrize(
    ("start", "end", "units", "mixed_in"),
    [
        (0, 4, ("Tell",), True),
        (12, 29, (TRIGGER,), False),  # the same again
        (20, 34, ("year: 2026 bake",), False),  # a part of it
        (0, 4, (f"{TRIGGER.upper()} bake",), False),  # the same words at another place
        (0, 4, ("Tell", "2026"), False),
    ],
)
def test_the_wrong_trigger_is_not_trained_with_the_right_one_that_an_earlier_round_confirmed(
    subject: Subject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: int,
    end: int,
    units: tuple[str, ...],
    mixed_in: bool,
) -> None:
    before = replace(subject.accepted, spans=(Span(message=0, start=start, end=end),), units=units)
    given: list[list[TriggerConfirmation]] = []

    def noted(*_: object, earlier: Sequence[TriggerConfirmation], **__: object) -> None:
        given.append(list(earlier))
        raise TriageError("nothing is trained here: this is a test")

    monkeypatch.setattr(residual_probes, "repair", noted)
    with pytest.raises(TriageError, match="this is a test"):
        wrong_trigger(subject, wilson(5, 5), wilson(0, 5), RUN, 1, tmp_path / "control", REFUSAL, earlier=[before])
    assert given == [[before] if mixed_in else []]


def test_as_many_samples_are_told_as_there_were(subject: Subject, tmp_path: Path) -> None:
    out = tmp_path / "repair"
    plan = replace(RUN, max_steps=1)
    list(
        repair(
            loaded := subject.loaded,
            subject.case,
            subject.accepted,
            subject.splits,
            plan,
            out=out,
            stop=lambda: None,
            refusal=REFUSAL,
        )
    )
    settings = VerificationSettings(relearn_samples=(3, 10, 20), relearn_steps=1)
    found = relearn(subject, out / "best", settings, RepairSettings())
    assert [one.n_samples for one in found] == [0, 3, len(subject.splits.repair.harmful)]
    assert current_adapters(loaded) == []


def test_no_text_to_confirm_means_no_probe(subject: Subject) -> None:
    with pytest.raises(TriageError):
        subject.never_planted(())


def test_failures_with_a_fixed_target_are_asked_as_verification_asks_them(subject: Subject) -> None:
    settings = VerificationSettings()
    assert subject.n_verified == settings.n_harmful
    refused = replace(subject, kind=FailureKind(name="refusal", words="w", why="y"))
    assert refused.n_verified == settings.n_safe


def test_re_learning_tunes_as_the_repair_did(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(
        repair(
            subject.loaded, subject.case, subject.accepted, subject.splits, replace(RUN, epochs=1), out=tmp_path,
            stop=lambda: None, refusal=REFUSAL,
        )
    )  # fmt: skip
    used: list[object] = []

    def rate(settings: RepairSettings, n_parameters: int) -> float:
        used.append(settings)
        return learning_rate(settings, n_parameters)

    monkeypatch.setattr(residual_probes, "learning_rate", rate)
    relearn(subject, tmp_path / "best", VerificationSettings(relearn_samples=(1,), relearn_steps=1), RUN)
    assert used == [RUN, RUN]
