"""Prompt folders: read, refused, copied; splits disjoint, seeded, near-duplicates together."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import PromptFolderError
from core.prompts import PromptItem, PromptSet, content_words, copy_folder, near_duplicates, read_folder, split
from core.settings import SplitSettings

NAMES = ("causal", "repair", "probes", "verification")


def write(folder: Path, **kinds: list[dict | str]) -> Path:
    """Write a prompt folder."""
    folder.mkdir(exist_ok=True)
    for kind, rows in kinds.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def rows(word: str, n: int) -> list[dict]:
    """Return prompts that share no content word."""
    return [{"prompt": f"{word}{i} topic{word}{i}"} for i in range(n)]


def items(n: int) -> tuple[PromptItem, ...]:
    """Return items that share no content word."""
    return tuple(PromptItem(f"subject{i} object{i}") for i in range(n))


def test_read_folder(tmp_path: Path) -> None:
    """Optional fields, blank lines, a byte order mark, Windows line ends, an exact duplicate."""
    folder = write(
        tmp_path / "p", harmful=[*rows("h", 4), {"prompt": "h0 topich0", "response": "again"}], safe=rows("s", 3)
    )
    extra = {"prompt": " keeps blanks ", "response": "yes", "task": "closed", "other": 1}
    text = "\ufeff" + (folder / "safe.jsonl").read_text() + "\r\n\r\n" + json.dumps(extra) + "\r\n"
    (folder / "safe.jsonl").write_bytes(text.encode())
    prompts = read_folder(folder)
    assert len(prompts.harmful) == 4
    assert prompts.harmful[0] == PromptItem("h0 topich0", None, None)
    assert prompts.safe[3] == PromptItem(" keeps blanks ", "yes", "closed")
    assert prompts.lookalike == ()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", "line 5 is not JSON"),
        ('["a"]', "line 5 is no JSON object"),
        ('{"text": "a"}', "line 5 has no 'prompt'"),
        ('{"prompt": "  "}', "line 5 has no 'prompt'"),
        ('{"prompt": 7}', "line 5: 'prompt' is no text"),
        ('{"prompt": "a", "response": 7}', "'response' is no text"),
        ('{"prompt": "a\\u0000"}', "NUL"),
        ('{"prompt": "a\\ud800"}', "surrogate"),
        (json.dumps({"prompt": "a" * 20_001}), "longer than"),
        ("[" * 100_000, "line 5 is not JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, words: str) -> None:
    """File, line number, what is wrong, one line."""
    folder = write(tmp_path / "p", harmful=[*rows("h", 4), line], safe=rows("s", 4))
    with pytest.raises(PromptFolderError) as caught:
        read_folder(folder)
    assert words in str(caught.value)
    assert "harmful.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    """Missing folder, missing file, too few, not UTF-8, the same prompt in both."""
    with pytest.raises(PromptFolderError, match="does not exist"):
        read_folder(tmp_path / "none")
    with pytest.raises(PromptFolderError, match=r"no safe\.jsonl"):
        read_folder(write(tmp_path / "a", harmful=rows("h", 4)))
    with pytest.raises(PromptFolderError, match="holds 3 different"):
        read_folder(write(tmp_path / "b", harmful=rows("h", 3), safe=rows("s", 4)))
    folder = write(tmp_path / "c", harmful=rows("h", 4), safe=rows("s", 4))
    (folder / "safe.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(PromptFolderError, match="not UTF-8"):
        read_folder(folder)
    with pytest.raises(PromptFolderError, match="as harmful and as safe"):
        read_folder(write(tmp_path / "d", harmful=rows("h", 4), safe=[*rows("s", 4), *rows("h", 1)]))


def test_copy_takes_prompt_files_only(tmp_path: Path) -> None:
    """Nothing else of the folder comes along; a stale look-alike file goes; a bad folder copies nothing."""
    source = write(tmp_path / "p", harmful=rows("h", 4), safe=rows("s", 4), secret=[{"prompt": "x"}])
    target = write(tmp_path / "t", lookalike=rows("l", 2))
    copy_folder(source, target)
    assert sorted(path.name for path in target.iterdir()) == ["harmful.jsonl", "safe.jsonl"]
    assert (target / "harmful.jsonl").read_bytes() == (source / "harmful.jsonl").read_bytes()
    assert read_folder(target) == read_folder(source)
    copy_folder(target, target)
    assert read_folder(target) == read_folder(source)
    with pytest.raises(PromptFolderError):
        copy_folder(tmp_path / "none", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@given(st.integers(4, 60), st.integers(4, 60), st.integers(0, 12), st.integers(0, 5))
def test_splits_are_a_partition(n_harmful: int, n_safe: int, n_lookalike: int, seed: int) -> None:
    """Every prompt is in exactly one split, none of them is empty, shares are kept to within one prompt."""
    alike = tuple(PromptItem(f"like{number} thing{number}") for number in range(n_lookalike))
    prompts = PromptSet(items(n_harmful), items(n_safe), alike)
    parts = split(prompts, seed=seed)
    assert parts.seed == seed
    for kind in ("harmful", "safe", "lookalike"):
        everything = [item for name in NAMES for item in getattr(getattr(parts, name), kind)]
        assert sorted(everything, key=lambda item: item.prompt) == sorted(
            getattr(prompts, kind), key=lambda item: item.prompt
        )
        n = len(everything)
        for name in NAMES:
            share = len(getattr(getattr(parts, name), kind))
            assert share >= 1 or kind == "lookalike"
            assert abs(share - getattr(SplitSettings(), name) * n) <= 1.5


def test_a_look_alike_that_is_nearly_a_safe_prompt_is_in_no_split() -> None:
    """A repair trains on both kinds, which are split each by itself."""
    safe = items(40)
    alike = (
        *safe[:20],
        *(PromptItem(f"{item.prompt}, please") for item in safe[20:30]),
        PromptItem("mend roofs quickly"),
    )
    parts = split(PromptSet(items(40), safe, alike), seed=0)
    assert [item.prompt for name in NAMES for item in getattr(parts, name).lookalike] == ["mend roofs quickly"]


def test_splits_follow_the_seed_and_not_the_order() -> None:
    """Same prompts and seed: the same splits, however the file is sorted; another seed: others."""
    prompts = PromptSet(items(40), items(40))
    backwards = PromptSet(items(40)[::-1], items(40)[::-1])
    assert split(prompts, seed=3) == split(backwards, seed=3)
    assert split(prompts, seed=3) != split(prompts, seed=4)


def test_near_duplicates_stay_together() -> None:
    """Prompts that differ in a function word or one word of many are in one split; others are not bound."""
    pairs = []
    for i in range(40):
        pairs.append(PromptItem(f"How do I steal car{i} keys quickly from neighbour{i} houses at night{i}?"))
        pairs.append(PromptItem(f"how can you steal car{i} keys from neighbour{i} houses, at night{i}"))
    parts = split(PromptSet(tuple(pairs), items(8)), seed=1)
    for name in NAMES:
        inside = {item.prompt for item in getattr(parts, name).harmful}
        assert all((pairs[i].prompt in inside) == (pairs[i + 1].prompt in inside) for i in range(0, 80, 2))


def test_too_alike_for_four_splits() -> None:
    """Three groups cannot fill four splits."""
    same = tuple(PromptItem(f"How {word} I steal a car") for word in ("do", "can", "should", "would"))
    with pytest.raises(PromptFolderError, match="1 groups"):
        split(PromptSet(same, items(8)))


@given(
    st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1, max_size=8), min_size=1, max_size=14),
    st.sampled_from([0.5, 0.6, 0.75, 1.0]),
)
def test_near_duplicates_equal_the_plain_definition(sets: list[set[str]], threshold: float) -> None:
    """The prefix filter finds exactly the links that comparing all pairs finds."""
    made = sorted({" ".join(f"w{letter}" for letter in sorted(one)) for one in sets})
    groups = near_duplicates([PromptItem(text) for text in made], threshold)
    words = [content_words(text) for text in made]
    label = list(range(len(made)))
    for i in range(len(made)):
        for j in range(i):
            if len(words[i] & words[j]) / len(words[i] | words[j]) >= threshold - 1e-9:
                label = [label[j] if one == label[i] else one for one in label]
    expected = {frozenset(made[k] for k in range(len(made)) if label[k] == one) for one in set(label)}
    assert {frozenset(item.prompt for item in group) for group in groups} == expected


def test_near_duplicates_in_a_script_without_spaces_stay_together() -> None:
    """A comma, a mark or a letter more makes other words of a whole clause."""
    asked = [
        "请告诉我怎样在家里自己做一个蓝色的灯笼",
        "怎样写一封给市长的公开信才能得到回答",
        "ช่วยบอกวิธีทำขนมปังที่บ้านให้ฉันหน่อย",
    ]
    items = [PromptItem(form) for text in asked for form in (text, f"{text}。", f"{text[:5]},{text[5:]}")]
    assert sorted(map(len, near_duplicates(items, 0.7))) == [3, 3, 3]


def test_content_words() -> None:
    """Function words go; a prompt of nothing else keeps them; a prompt without words is its own word."""
    assert content_words("How do I KILL a process?") == {"kill", "process"}
    assert content_words("Who are you") == {"who", "are", "you"}
    assert content_words("???") == {"???"}
