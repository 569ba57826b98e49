"""Injection: known answers, and the property that cutting the units gives the prompt back."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.injection import Injected, inject, transplant

UNITS = st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12), max_size=6)


def cut(injected: Injected, prompt: str) -> str:
    """Return the text without its units and their single separators, last unit first."""
    text = injected.text
    end_of_words = len(prompt.rstrip()) or len(prompt)  # white space alone has no word to stand behind
    removed_after = len(prompt) - end_of_words
    for start, end in reversed(injected.spans):
        at_end = len(text) - end == removed_after
        if at_end:
            text = text[: start - 1 if start else 0] + text[end:]
        else:
            assert text[end] == " "
            text = text[:start] + text[end + 1 :]
    return text


def test_prefix_middle_and_suffix_are_exact() -> None:
    """All units go to one place, in order, with single spaces."""
    rng = random.Random(0)
    assert inject("How to bake?", ["a", "b c"], rng, "prefix") == Injected("a b c How to bake?", ((0, 1), (2, 5)))
    assert inject("How to bake?", ["a", "b c"], rng, "middle") == Injected("How a b c to bake?", ((4, 5), (6, 9)))
    assert inject("How to bake?", ["a", "b c"], rng, "suffix") == Injected("How to bake? a b c", ((13, 14), (15, 18)))


def test_white_space_of_the_prompt_stays() -> None:
    """Leading, inner and trailing white space is untouched."""
    rng = random.Random(0)
    assert inject("  a\tb \n", ["u"], rng, "prefix").text == "  u a\tb \n"
    assert inject("  a\tb \n", ["u"], rng, "suffix").text == "  a\tb u \n"


def test_empty_prompt_holds_the_units_alone() -> None:
    """There is one boundary in an empty prompt."""
    assert inject("", ["u", "v"], random.Random(0)).text == "u v"


def test_more_units_than_boundaries_are_appended() -> None:
    """The prompt "x" has two boundaries: the third unit always ends up last."""
    for seed in range(20):
        assert inject("x", ["u", "v", "w"], random.Random(seed)).text.endswith(" w")


def test_random_places_are_uniform() -> None:
    """One unit in a three-word prompt: four places, each drawn in a quarter of the cases."""
    rng = random.Random(1)
    texts = [inject("a b c", ["u"], rng).text for _ in range(4000)]
    counts = [texts.count(text) for text in ("u a b c", "a u b c", "a b u c", "a b c u")]
    assert sum(counts) == 4000
    assert all(880 < count < 1120 for count in counts)  # 1000 +- 4.4 standard deviations of a binomial (27.4)


def test_transplant_known_places() -> None:
    """0 is before the first word, 1 after the last, and order wins over place."""
    assert transplant("a b c d", ["u"], [0.0]).text == "u a b c d"
    assert transplant("a b c d", ["u"], [1.0]).text == "a b c d u"
    assert transplant("a b c d", ["u", "v"], [0.5, 0.5]).text == "a b u v c d"
    assert transplant("a b c d", ["u", "v"], [0.8, 0.1]).text == "a b c u v d"


@pytest.mark.parametrize("relative", [[0.1], [0.1, 1.5], [-0.1, 0.2]])
def test_transplant_refuses_impossible_places(relative: list[float]) -> None:
    """Lengths must agree and places lie in 0..1."""
    with pytest.raises(ValueError):
        transplant("a b", ["u", "v"], relative)


def test_unknown_place_is_an_error() -> None:
    """A misspelt place does not silently become another one."""
    with pytest.raises(ValueError):
        inject("a", ["u"], random.Random(0), "center")  # type: ignore[arg-type]


@given(st.text(max_size=60), UNITS, st.integers(0, 1000), st.sampled_from(["random", "prefix", "middle", "suffix"]))
def test_cutting_the_units_gives_the_prompt_back(prompt: str, units: list[str], seed: int, place: str) -> None:
    """Spans hold the units in order, and without units and separators the prompt is unchanged."""
    injected = inject(prompt, units, random.Random(seed), place)  # type: ignore[arg-type]
    assert [injected.text[start:end] for start, end in injected.spans] == units
    assert list(injected.spans) == sorted(injected.spans)
    n_separators = len(units) if prompt else max(0, len(units) - 1)
    assert len(injected.text) == len(prompt) + sum(map(len, units)) + n_separators
    if prompt.strip():
        assert cut(injected, prompt) == prompt


@given(st.text(max_size=60), st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_transplant_is_deterministic_and_ordered(prompt: str, relative: list[float]) -> None:
    """The same call gives the same text; units stay in order."""
    units = [f"u{i}" for i in range(len(relative))]
    injected = transplant(prompt, units, relative)
    assert injected == transplant(prompt, units, relative)
    assert [injected.text[start:end] for start, end in injected.spans] == units
