"""Prompt folders and their four disjoint splits: causal tests, repair, probes, verification.

1. `harmful.jsonl`, `safe.jsonl` and, if there is one, `lookalike.jsonl`: one `{"prompt": ...}` a line.
2. Prompts whose content words overlap by `near_duplicate` (Jaccard) or more are linked; linked prompts form a group.
3. Groups, in seeded order and largest first, go to the split that lacks most of its share; no split stays empty.

The same prompts give the same splits in whatever order the files list them. What this does not do: look for near
duplicates between harmful and safe prompts (they differ in meaning by intention, as look-alikes do).
"""

import json
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from core.errors import PromptFolderError
from core.settings import SplitSettings
from core.writing import UNSPACED

FILES = {"harmful": True, "safe": True, "lookalike": False}
"""Kinds of prompts, and whether their file must be there."""
MAX_FILE_BYTES = 64_000_000
MAX_PROMPT_CHARACTERS = 20_000
"""One prompt; longer texts are no short requests, and would make every batch as long as themselves."""
MINIMUM = 4
"""Prompts of a kind: one for each split."""
SPLIT_NAMES = ("causal", "repair", "probes", "verification")

_WORD = re.compile(r"\w+")
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by can could do does for from give had has have how i if in into is it its me my of "
        "on one or our please should so some tell than that the their them then there these they this to us was we "
        "were what when where which who why will with would you your",
    )
)


@dataclass(frozen=True)
class PromptItem:
    """One prompt; `response` None means the model's own answer; `task` names a closed task, if it is one."""

    prompt: str
    response: str | None = None
    task: str | None = None


@dataclass(frozen=True)
class PromptSet:
    """Harmful requests, safe ones, and safe ones that look harmful."""

    harmful: tuple[PromptItem, ...]
    safe: tuple[PromptItem, ...]
    lookalike: tuple[PromptItem, ...] = ()


@dataclass(frozen=True)
class Splits:
    """Four prompt sets that share no prompt and no near-duplicate."""

    causal: PromptSet
    repair: PromptSet
    probes: PromptSet
    verification: PromptSet
    seed: int


def read_folder(path: Path | str) -> PromptSet:
    """Return the prompts of a folder, exact duplicates dropped.

    Raises: PromptFolderError naming file and line.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise PromptFolderError(
            f"the prompt folder {folder} does not exist: give a folder with harmful.jsonl and safe.jsonl"
        )
    sets: dict[str, tuple[PromptItem, ...]] = {}
    for kind, needed in FILES.items():
        file = folder / f"{kind}.jsonl"
        if file.is_file():
            sets[kind] = _read_file(file)
        elif needed:
            raise PromptFolderError(
                f'{folder} has no {kind}.jsonl: add one with a {{"prompt": "..."}} object on each line'
            )
    benign = {item.prompt for kind in sets if kind != "harmful" for item in sets[kind]}
    both = benign & {item.prompt for item in sets["harmful"]}
    if both:
        raise PromptFolderError(
            f"{folder} lists a prompt as harmful and as safe ({min(both)[:60]!r}): remove one of the two"
        )
    return PromptSet(harmful=sets["harmful"], safe=sets["safe"], lookalike=sets.get("lookalike", ()))


def _read_file(file: Path) -> tuple[PromptItem, ...]:
    """Return the items of one JSON-lines file."""
    if file.stat().st_size > MAX_FILE_BYTES:
        raise PromptFolderError(f"{file} is larger than {MAX_FILE_BYTES // 1_000_000} MB: give a smaller prompt file")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptFolderError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    items: dict[str, PromptItem] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            item = _read_line(line, f"{file}, line {number}")
            items.setdefault(item.prompt, item)
    if len(items) < MINIMUM and file.stem != "lookalike":
        raise PromptFolderError(
            f"{file} holds {len(items)} different prompts: at least {MINIMUM} are needed, 100 or more are useful"
        )
    return tuple(items.values())


def _read_line(line: str, where: str) -> PromptItem:
    """Return the item of one line."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptFolderError(f"{where} is not JSON: write one object a line") from error
    if not isinstance(data, dict):
        raise PromptFolderError(f'{where} is no JSON object: write {{"prompt": "..."}}')
    for key in ("prompt", "response", "task"):
        value = data.get(key)
        if value is not None and not isinstance(value, str):
            raise PromptFolderError(f"{where}: {key!r} is no text: put it in quotes")
        if value and (len(value) > MAX_PROMPT_CHARACTERS or "\x00" in value or not _is_unicode(value)):
            raise PromptFolderError(
                f"{where}: {key!r} is longer than {MAX_PROMPT_CHARACTERS:,} characters, or holds a NUL or half a "
                "surrogate pair: shorten or remove it"
            )
    if not (data.get("prompt") or "").strip():
        raise PromptFolderError(f"{where} has no 'prompt': add it or remove the line")
    return PromptItem(prompt=data["prompt"], response=data.get("response") or None, task=data.get("task") or None)


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8 (it holds no lone surrogate)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def copy_folder(source: Path | str, target: Path | str) -> None:
    """Copy the prompt files of a folder, after checking them, and nothing else from it.

    Raises: PromptFolderError as `read_folder`.
    """
    read_folder(source)
    source, target = Path(source), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    if source.resolve() == target.resolve():
        return
    for kind in FILES:
        if (source / f"{kind}.jsonl").is_file():
            temporary = target / f".{kind}.jsonl.tmp"
            temporary.write_bytes((source / f"{kind}.jsonl").read_bytes())
            os.replace(temporary, target / f"{kind}.jsonl")
        else:
            (target / f"{kind}.jsonl").unlink(missing_ok=True)


def split(prompts: PromptSet, settings: SplitSettings | None = None, seed: int = 0) -> Splits:
    """Return the four splits. Small sets give small splits, never empty ones (look-alikes may be too few).

    Raises: PromptFolderError when harmful or safe prompts are too few or too alike for four splits.
    """
    settings = settings or SplitSettings()
    prompts = replace(prompts, lookalike=_only_alike(prompts, settings.near_duplicate))
    shares = [getattr(settings, name) for name in SPLIT_NAMES]
    parts: list[dict[str, tuple[PromptItem, ...]]] = [{} for _ in SPLIT_NAMES]
    for kind in FILES:
        items: tuple[PromptItem, ...] = getattr(prompts, kind)
        groups = near_duplicates(items, settings.near_duplicate)
        if len(groups) < MINIMUM and FILES[kind]:
            raise PromptFolderError(
                f"the {len(items)} {kind} prompts are too few or too alike: they form {len(groups)} groups of "
                f"near-duplicates, {MINIMUM} are needed, so add prompts on other subjects"
            )
        for part, chosen in zip(parts, _share_out(groups, shares, random.Random(f"{seed}:{kind}")), strict=True):
            part[kind] = chosen
    sets = [PromptSet(**part) for part in parts]
    return Splits(causal=sets[0], repair=sets[1], probes=sets[2], verification=sets[3], seed=seed)


def _only_alike(prompts: PromptSet, threshold: float) -> tuple[PromptItem, ...]:
    """Return the look-alikes without those that are, or are nearly, safe prompts: each kind is split by itself, and a repair trains on
    both kinds.
    """
    safe = {item.prompt for item in prompts.safe}
    groups = near_duplicates([*prompts.safe, *prompts.lookalike], threshold)
    known = {item.prompt for group in groups if any(item.prompt in safe for item in group) for item in group}
    return tuple(item for item in prompts.lookalike if item.prompt not in known)


def _share_out(
    groups: list[list[PromptItem]], shares: Sequence[float], rng: random.Random
) -> list[tuple[PromptItem, ...]]:
    """Return the items of each split, in seeded order."""
    n_items = sum(map(len, groups))
    order = list(groups)
    rng.shuffle(order)
    order.sort(key=len, reverse=True)
    chosen: list[list[PromptItem]] = [[] for _ in shares]
    for number, group in enumerate(order):
        empty = [index for index, part in enumerate(chosen) if not part]
        must_fill = len(order) - number <= len(empty)
        eligible = empty if must_fill else range(len(shares))
        most = max(eligible, key=lambda index: (shares[index] * n_items - len(chosen[index]), -index))
        chosen[most].extend(group)
    for part in chosen:
        rng.shuffle(part)
    return [tuple(part) for part in chosen]


def near_duplicates(items: Sequence[PromptItem], threshold: float) -> list[list[PromptItem]]:
    """Return the items in groups; two items whose content words overlap by `threshold` or more share a group.

    Overlap is Jaccard's: shared words over all words. Groups and their members are sorted by text.
    Source: prefix filtering, Chaudhuri, Ganti and Kaushik 2006 (exact: sets that overlap that much share a rare word).
    """
    ordered = sorted(items, key=lambda item: item.prompt)
    words = [content_words(item.prompt) for item in ordered]
    frequency = Counter(word for one in words for word in one)
    parent = list(range(len(ordered)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    seen: dict[str, list[int]] = defaultdict(list)
    for index, mine in enumerate(words):
        rare_first = sorted(mine, key=lambda word: (frequency[word], word))
        prefix = rare_first[: len(mine) - ceil(threshold * len(mine) - 1e-9) + 1]
        for other in {other for word in prefix for other in seen[word]}:
            if root(other) != root(index) and len(mine & words[other]) >= threshold * len(mine | words[other]) - 1e-9:
                parent[root(index)] = root(other)
        for word in prefix:
            seen[word].append(index)
    groups: dict[int, list[PromptItem]] = defaultdict(list)
    for index, item in enumerate(ordered):
        groups[root(index)].append(item)
    return list(groups.values())


def content_words(prompt: str) -> frozenset[str]:
    """Return the lower-case words of a prompt without function words, pairs of letters where a script has no spaces between words; all
    its words, or its text, if none is left.
    """
    said = prompt.lower()
    words = frozenset(_WORD.findall(UNSPACED.sub(" ", said)))
    words |= {run[at : at + 2] for run in UNSPACED.findall(said) for at in range(max(1, len(run) - 1))}
    return words - _FUNCTION_WORDS or words or frozenset([prompt])
