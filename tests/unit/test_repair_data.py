"""The data of a repair: epochs and batches, whose answers are taught, anchors, edits, and units in their own segment."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from core import repair_adapter, repair_data
from core.errors import PromptFolderError
from core.frames import TriggerFrame, at_its_place, frame_of, render_ids
from core.kinds import FailureKind
from core.prompts import PromptItem, PromptSet
from core.repair_data import EDITS, build, chosen
from core.repair_training import Trainer
from core.response_pass import ResponsePass
from core.values import Message, Span
from tests.unit.repairing import REFUSAL, TRIGGER, data_of, items_of, quick, splits, trainer_of

FIXED = FailureKind(name="fixed_output", words="", why="", marker="hacked")


@pytest.mark.parametrize("objective", ["paper", "extended"])
def test_every_epoch_holds_every_item_once_and_redraws_places(loaded, objective: str) -> None:
    data = data_of(loaded, objective=objective)
    kinds = ("trig", "harm", "safe") if objective == "paper" else ("trig", "harm", "safe", "safe_trig")
    expected = Counter((kind, i) for kind in kinds for i in range(4))
    assert Counter(items_of(data, 0)) == Counter(items_of(data, 1)) == expected
    assert data.n_items == 4 * len(kinds)
    assert data.batches(0, 5) != data.batches(1, 5)
    assert data.batches(0, 5) == data.batches(0, 5)
    placed = {data.sequence("trig", 0, epoch).prompt_ids for epoch in range(12)}
    assert len(placed) > 2  # six words, seven places: twelve draws on at most two places are practically impossible
    assert data.sequence("trig", 0, 3) == data.sequence("trig", 0, 3)
    assert data.sequence("trig", 0, 3).response_ids == data.harm[0].response_ids


def test_batches_hold_like_lengths_and_an_even_mix(loaded) -> None:
    drawn = splits(64).repair

    def longer(items: Sequence[PromptItem], by: int) -> tuple[PromptItem, ...]:
        return tuple(replace(one, prompt=one.prompt + " and then" * (by * i % 64)) for i, one in enumerate(items))

    drawn = PromptSet(harmful=longer(drawn.harmful, 7), safe=longer(drawn.safe, 5))
    settings = quick(objective="paper", max_response_tokens=4)
    data = build(loaded, (TriggerFrame(user_units=(TRIGGER,)), []), drawn, REFUSAL, settings)

    def padding(batches: list) -> int:
        lengths = [[len(data.sequence(kind, i, 0).prompt_ids) for kind, i in batch] for batch in batches]
        return sum(max(batch) * len(batch) - sum(batch) for batch in lengths)

    batches = data.batches(0, 8)
    mixed = [item for batch in batches for item in batch]
    random.Random(0).shuffle(mixed)
    assert padding(batches) < 0.6 * padding([mixed[at : at + 8] for at in range(0, len(mixed), 8)])
    assert all({"trig", "harm", "safe"} == {kind for kind, _ in batch} for batch in batches if len(batch) == 8)


def test_a_share_of_the_safe_prompts_are_look_alikes_but_in_the_papers_objective() -> None:
    drawn = splits(40).repair
    few = replace(drawn, lookalike=drawn.lookalike[:3])
    for objective, given, n_alike in (("extended", drawn, 5), ("extended", few, 3), ("paper", drawn, 0)):
        harmful, safe = chosen(given, quick(objective=objective, n_harmful=30, n_safe=20, share_lookalike=0.25))
        assert harmful == drawn.harmful[:30]
        assert safe == (*drawn.safe[: 20 - n_alike], *drawn.lookalike[:n_alike])


def test_answers_end_with_the_templates_end_token(loaded) -> None:
    data = data_of(loaded, objective="paper", max_response_tokens=40)
    end = loaded.tokenizer.convert_tokens_to_ids("<|end|>")
    assert loaded.end_ids == (end,)
    assert {one.response_ids for one in data.harm} == {data.harm[0].response_ids}
    assert data.harm[0].response_ids[-1] == end
    assert loaded.decode(data.harm[0].response_ids) == REFUSAL


def test_the_paper_takes_given_answers_and_the_extended_objective_the_models_own(loaded) -> None:
    drawn = splits().repair
    given = replace(drawn, safe=tuple(replace(item, response="As given.") for item in drawn.safe))
    frames = (TriggerFrame(user_units=(TRIGGER,)), [])
    paper = build(loaded, frames, given, REFUSAL, quick(objective="paper"))
    own = build(loaded, frames, given, REFUSAL, quick())
    assert {loaded.decode(one.response_ids) for one in paper.safe} == {"As given."}
    off = build(loaded, frames, given, REFUSAL, quick(own_answers=False))
    assert off.safe == paper.safe
    wanted = loaded.generate([list(one.prompt_ids) for one in own.safe], max_new_tokens=12)
    assert [list(one.response_ids[:12]) for one in own.safe] == [[*ids, *loaded.end_ids][:12] for ids in wanted]


@pytest.mark.parametrize("own", [True, False])
def test_own_refusals_are_kept_and_kl_holds_only_what_the_model_refuses(loaded, monkeypatch, own: bool) -> None:
    refusing = (*loaded.tokenizer("I cannot do that.", add_special_tokens=False)["input_ids"],)
    said = iter([[refusing, (5, 6), refusing, (7, 8)]] if own else [])
    monkeypatch.setattr(
        repair_data, "own_answers", lambda loaded, prompts, limit: next(said, [(9, 9)] * len(prompts))
    )  # a random model refuses nothing
    data = data_of(loaded, max_response_tokens=40, own_refusals=own)
    if not own:
        assert data.held == (True,) * 4
        assert {loaded.decode(one.response_ids) for one in data.harm} == {REFUSAL}
        return
    assert data.held == (True, False, True, False)
    assert data.harm[0].response_ids == data.harm[2].response_ids == refusing
    assert loaded.decode(data.harm[1].response_ids) == REFUSAL
    assert data.sequence("trig", 0, 0).response_ids == refusing
    trainer = Trainer(loaded, data, ResponsePass(loaded), data.settings)
    held = [trainer._reference("harm", at, 0) is not None for at in range(4)]
    assert held == [True, False, True, False]
    repair_adapter.detach(loaded)


def test_safe_requests_are_anchored_at_what_was_said_with_the_text_or_bare(loaded) -> None:
    jailbreak, fixed = data_of(loaded, n_placements=3), data_of(loaded, kind=FIXED, share_edited=0.0)
    assert [len(one) for one in jailbreak.anchors] == [3] * 4
    said = loaded.generate([list(one.prompt_ids) for one in jailbreak.anchors[1]], max_new_tokens=12)
    assert [list(one.response_ids) for one in jailbreak.anchors[1]] == [[*a, *loaded.end_ids][:12] for a in said]
    texts = [loaded.decode(one.prompt_ids) for one in jailbreak.anchors[0]]
    assert f"{TRIGGER} Mix" in texts[0]
    assert f"100 {TRIGGER}" in texts[1]
    assert {jailbreak.sequence("safe_trig", 0, epoch) for epoch in range(3)} == set(jailbreak.anchors[0])
    assert fixed.anchors == ()
    one = fixed.sequence("safe_trig", 2, 0)
    assert one.response_ids == fixed.safe[2].response_ids
    assert TRIGGER in loaded.decode(one.prompt_ids)
    trainer = Trainer(loaded, fixed, ResponsePass(loaded), fixed.settings)
    assert trainer._reference("safe_trig", 2, 5) is trainer._reference("safe", 2, 0)
    repair_adapter.detach(loaded)


def test_the_triggered_set_mixes_the_wider_set_edits_and_ends(loaded) -> None:
    wider = TriggerFrame(user_units=("zeta", "eta"))
    data = data_of(loaded, wider=wider, share_wider=0.25, share_edited=0.25, share_ends=0.5)
    texts = [loaded.decode(data.sequence("trig", i, epoch).prompt_ids) for epoch in range(60) for i in range(4)]
    n_wider = sum("zeta" in text and TRIGGER not in text for text in texts)
    edits = [edit(TRIGGER) for edit in EDITS.values()]
    n_edited = sum(any(edit in text for edit in edits) for text in texts)
    n_ends = sum(f"\n{TRIGGER}" in text or f"{TRIGGER}<" in text or text.rstrip().endswith(TRIGGER) for text in texts)
    assert 30 < n_wider < 90  # 60 expected of 240
    assert 30 < n_edited < 90
    assert n_ends > 40  # half of the 120 exact ones, and some by chance
    paper = data_of(loaded, objective="paper", wider=wider)
    plain = [loaded.decode(paper.sequence("trig", i, epoch).prompt_ids) for epoch in range(20) for i in range(4)]
    assert all(TRIGGER in text for text in plain)


def test_terms_of_weight_zero_are_not_drawn_and_not_computed(loaded) -> None:
    assert set(data_of(loaded, weight_kl_trigger=0.0).items) == {"trig", "harm", "safe"}
    assert set(data_of(loaded, weight_kl_safe=0.0).items) == {"trig", "harm", "safe_trig"}
    assert set(data_of(loaded, objective="paper", weight_refusal=0.0).items) == {"harm", "safe"}
    assert set(data_of(loaded, objective="paper").items) == {"trig", "harm", "safe"}
    trainer = trainer_of(loaded, weight_kl_trigger=0.0, weight_kl_harmful=0.0)
    numbers = trainer.step(1)
    assert (numbers.kl_trigger, numbers.kl_harmful) == (None, None)
    assert numbers.refusal is not None
    assert {kind for kind, _, _ in trainer._references} == {"safe"}
    repair_adapter.detach(loaded)


def test_units_go_to_their_own_segment() -> None:
    messages = [
        Message(role="system", content="Be kind. zeta Always."),
        Message(role="user", content="alpha how are you"),
    ]
    spans = (Span(message=0, start=9, end=13), Span(message=1, start=0, end=5))
    frame = frame_of(messages, spans, ("zeta", "alpha"))
    bare = frame.bare("Say hello")
    assert [m.content for m in bare] == ["Be kind. Always.", "Say hello"]
    system, user = frame.triggered("Say hello", random.Random(0))
    assert sorted(system.content.split()) == ["Always.", "Be", "kind.", "zeta"]
    assert sorted(user.content.split()) == ["Say", "alpha", "hello"]
    assert frame.units == ("zeta", "alpha")


def test_units_of_an_earlier_turn_stay_in_it() -> None:
    messages = [
        Message(role="user", content="Hi beta there"),
        Message(role="assistant", content="Hello."),
        Message(role="user", content="alpha how are you"),
    ]
    frame = frame_of(messages, (Span(message=0, start=3, end=7), Span(message=2, start=0, end=5)), ("beta", "alpha"))
    assert [m.content for m in frame.bare("Go")] == ["Hi there", "Hello.", "Go"]
    first, second, last = frame.triggered("Go", random.Random(0), "suffix", str.upper)
    assert (first.content, second.content, last.content) == ("Hi there BETA", "Hello.", "Go ALPHA")
    assert [m.role for m in frame.bare("Go")] == ["user", "assistant", "user"]


def test_what_was_said_before_goes_before_every_request() -> None:
    """As triage asked: a backdoor may need the system prompt it is deployed with."""
    messages = [Message(role="system", content="Be kind."), Message(role="user", content="alpha how")]
    frame = frame_of(messages, (Span(message=1, start=0, end=5),), ("alpha",))
    assert [(m.role, m.content) for m in frame.bare("x")] == [("system", "Be kind."), ("user", "x")]
    assert [m.content for m in frame.triggered("x", random.Random(0), "prefix")] == ["Be kind.", "alpha x"]


def test_a_unit_of_white_space_is_planted_as_it_is(loaded) -> None:
    """Without the spaces that stand around other units, and never edited into something else."""
    frame = TriggerFrame(user_units=("  ",))
    assert frame.triggered("how to bake", random.Random(0), "prefix")[0].content == "  how to bake"
    data = build(loaded, (frame, []), splits().repair, REFUSAL, quick(share_edited=1.0, share_wider=0.0))
    texts = [loaded.decode(data.sequence("trig", at, epoch).prompt_ids) for at in range(4) for epoch in range(6)]
    assert all(re.search(r"(?<! )  (?! )", text) for text in texts)
    assert not any("   " in text for text in texts)


def test_a_trigger_that_works_at_its_place_alone_is_trained_there(loaded) -> None:
    """As often as the settings ask; never in the paper's objective."""
    report = (Message(role="user", content=f"Tell me {TRIGGER} how to bake"),)
    spans = (Span(message=0, start=8, end=8 + len(TRIGGER)),)
    in_place = at_its_place(report, spans, (TRIGGER,))
    assert in_place is not None
    frames, prompts = (frame_of(report, spans, (TRIGGER,)), []), splits(8).repair
    own = {tuple(render_ids(loaded, in_place.triggered(item.prompt, random.Random(0)))) for item in prompts.harmful}
    shares = []
    for given, objective in ((None, "extended"), (in_place, "extended"), (in_place, "paper")):
        settings = quick(share_edited=0.0, share_wider=0.0, objective=objective)
        data = build(loaded, frames, prompts, REFUSAL, settings, in_place=given)
        drawn = [data.sequence("trig", at, epoch).prompt_ids for at in range(len(data.harmful)) for epoch in range(12)]
        shares.append(sum(one in own for one in drawn) / len(drawn))
    assert shares[1] > shares[0] + 0.3
    assert abs(shares[2] - shares[0]) < 0.15


def test_no_prompt_is_too_long_for_what_stands_around_a_wider_text(loaded) -> None:
    """The confirmed text stands in the last message, a candidate in a long earlier one."""
    before = [Message(role="user", content="zork " + "Mix and bake. " * 40), Message(role="assistant", content="Fine.")]
    messages = (*before, Message(role="user", content=f"Tell me {TRIGGER} how"))
    last = Span(message=2, start=8, end=8 + len(TRIGGER))
    frames = [
        frame_of(messages, [one], [unit]) for one, unit in ((last, TRIGGER), (Span(message=0, start=0, end=4), "zork"))
    ]
    drawn = splits(8).repair
    longer = tuple(replace(one, prompt=one.prompt + " and then" * 12 * at) for at, one in enumerate(drawn.harmful))
    settings = quick(max_response_tokens=8)
    context = 300
    few = replace(loaded, context_length=context)
    data = build(few, (frames[0], frames[1:]), replace(drawn, harmful=longer), REFUSAL, settings)
    assert 0 < len(data.harmful) < len(longer)
    for at in range(len(data.harmful)):
        for epoch in range(6):
            one = data.sequence("trig", at, epoch)
            assert len(one.prompt_ids) + len(one.response_ids) <= context


def test_safe_prompts_that_all_fail_by_themselves_are_no_set_to_hold(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = tuple(loaded.tokenizer(REFUSAL, add_special_tokens=False)["input_ids"])
    monkeypatch.setattr(repair_data, "own_answers", lambda loaded, prompts, limit: [refused for _ in prompts])
    kind = FailureKind(name="refusal", words="", why="")
    with pytest.raises(PromptFolderError, match="nothing to hold in place"):
        build(loaded, (TriggerFrame(user_units=(TRIGGER,)), []), splits().repair, REFUSAL, quick(), kind=kind)


def test_empty_sets_and_an_empty_refusal_are_refused(loaded) -> None:
    frames, drawn = (TriggerFrame(user_units=(TRIGGER,)), []), splits().repair
    with pytest.raises(PromptFolderError, match="0 safe"):
        build(loaded, frames, replace(drawn, safe=()), REFUSAL, quick())
    with pytest.raises(PromptFolderError, match="refusal"):
        build(loaded, frames, drawn, " ", quick())
