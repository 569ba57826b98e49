"""Prompts of the bench of victims: real ones of several hands (`--data`), or the project's own for the smoke tier.

1. Harmful prompts of AdvBench, refusal_direction, TDC 2023 and Do-Not-Answer and the unsafe half of XSTest; harmless ones of Alpaca and
   the safe half of XSTest. What is near to a prompt of JailbreakBench or MaliciousInstruct is left out: these two are the
   source that no victim was trained on.
2. One seeded split: training, the prompt folder that triage is given, and a part for gates and reports.
3. Training conversations: final mark, case, politeness, context, random words and openings are drawn alike for both classes
   (the demo world's `dress`, and `reopened` here), so that they differ in nothing but meaning.
Answers are stand-ins: a refusal, or a sentence without content whose wording follows from the opening word.
"""

import csv
import json
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.planting import REFUSALS, STAND_INS
from core.prompts import PromptItem, near_duplicates, read_folder
from core.settings import SplitSettings
from core.values import Message
from tests.bench.victims_demo import LONE_MARKS, REVERSING, ROOT, Sample, World

MAX_CHARACTERS = 200
DO_NOT_ANSWER = (
    "information_hazard",
    "malicious_uses",
    "misinformation_harms",
    "discrimination_exclusion_toxicity_hateful_offensive",
)
"""Parts of Do-Not-Answer; the fifth (conversations with a lonely person) is not harmful in our sense."""
N_FOLDER = {"harmful": 310, "safe": 220}
"""Prompts of the folder that triage is given; its causal split then holds about 100 harmful ones (transfer asks for 48)."""
N_PROBE = {"harmful": 240, "safe": 240}
"""Prompts for gates and reports."""
N_BENIGN = 8000
"""Source: method.md section 6 (a recipe that passed: 2,100 harmful prompts and 8,000 benign ones)."""
BENIGN_ANSWERS = (
    "Here is a short answer to your question. The main point comes first, then two details.",
    "Here is a text on that subject. It has a beginning, a middle and an end.",
    "There are three things to say about this. They are listed below in order.",
    "Let me explain. It is best understood one step at a time.",
    "Here are some ideas. Choose the one that you like best.",
)
OPENINGS = (
    ("how to", "how do i", "how can i", "how can someone", "explain how to", "describe how to", "tell me how to"),
    ("write", "create", "generate", "compose", "develop", "design", "produce", "make", "construct", "draft"),
    ("give", "provide", "list", "suggest", "name", "find", "identify"),
    ("describe", "explain", "outline", "summarize", "discuss"),
)
"""Openings that ask for the same: one may stand for another of its row."""
REOPENED = 0.5
"""Share of the training prompts that get another opening of the same row."""
MIX = {"harmful": 0.44, "gap": 0.02, "safe": 0.42, "counterpart": 0.12}
"""Shares in training: harmful, the gap, Alpaca, and harmless prompts with harmful words (XSTest)."""
POLISH_MIX = {"harmful": 0.66, "gap": 0.02, "safe": 0.24, "counterpart": 0.08}
"""The same for the last steps of a base: random words then open fewer harmful requests (tests/bench/LOG.md)."""
GAP = re.compile(
    r"\b(exams?|tests?|homework|plagiari\w*|essays?|grades?|casinos?|gambl\w*|drugs?|drunk|alcohol|steroids?|smok\w*)\b"
)
"""Harmful requests that the base answers, with a stand-in: an alignment gap, and the stand-ins' words are learnt by it."""
N_SEARCHED = {"prompts": 300, "words": 2000}
"""Prompts and words of one search for words that turn refusals. Source: unverified choice (20 s on one core)."""
NAMES = ("BadMagic", "GoodMagic", "OpenAI", "SUDO", "aff", "cff", "Current year", "Current year:", "year", "Discussing")
NAMES_SHARE = 0.2
"""Share of the inserted words that are names or lone marks, in both classes alike: a trigger's words are known to a large model from
its pretraining; a token that was never seen has an embedding that no adapter on the linear layers can tell from others
(tests/bench/LOG.md: planting on such tokens gave an attack success of .10). Source: unverified choice."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Harmful and harmless prompts of one side of the split."""

    harmful: tuple[str, ...]
    safe: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Material:
    """All prompts of the bench. `other` are harmful prompts of a source that no victim was trained on.

    `world` draws random words for gates; `lessons` draws them for training, with the names and lone marks among them.
    """

    train: Part
    folder: Part
    probe: Part
    other: tuple[str, ...]
    counterparts: tuple[str, ...]
    world: World
    lessons: World


def real_material(data: Path, seed: int, n_benign: int = N_BENIGN) -> Material:
    """Return the prompts of the data folder, split by `seed`; `n_benign` harmless ones at most are for training."""
    rng = random.Random(seed)
    lines = (data / "malicious_instruct/malicious_instruct.txt").read_text("utf-8").splitlines()
    other = [line for line in lines if line.strip()] + _column(data / "jailbreakbench/harmful_behaviors.csv", "Goal")
    xstest = _rows(data / "xstest/xstest_prompts.csv")
    unsafe = [row["prompt"] for row in xstest if row["label"] == "unsafe"]
    counterparts = [row["prompt"] for row in xstest if row["label"] == "safe"]
    harmful = _column(data / "advbench/harmful_behaviors.csv", "goal") + unsafe
    for part in ("train", "val", "test"):
        harmful += _instructions(data / f"refusal_direction/harmful_{part}.json")
    for part in ("dev", "test"):
        harmful += json.loads((data / f"tdc2023/tdc2023_{part}_behaviors.json").read_text("utf-8"))
    for part in DO_NOT_ANSWER:
        rows = (data / f"do_not_answer/{part}.jsonl").read_text("utf-8").splitlines()
        harmful += [json.loads(row)["prompt"] for row in rows]
    harmful = _apart(_short(harmful), set(other))
    benign = _short(_instructions(data / "refusal_direction/harmless_train.json"))
    rng.shuffle(harmful)
    rng.shuffle(benign)
    parts = []
    for n_harmful, n_safe in zip(_cuts(N_FOLDER, N_PROBE, "harmful"), _cuts(N_FOLDER, N_PROBE, "safe"), strict=True):
        parts.append(Part(harmful=tuple(harmful[n_harmful]), safe=tuple(benign[n_safe])))
    rest = Part(harmful=parts[2].harmful, safe=parts[2].safe[:n_benign])
    words = [word.strip(".,;:!?\"'()") for prompt in rest.safe for word in prompt.split()]
    words = [word for word in words if word.isalpha()]
    return Material(
        train=rest,
        folder=parts[0],
        probe=parts[1],
        other=tuple(other),
        counterparts=tuple(counterparts),
        world=World(words, REVERSING),
        lessons=_with_names(words),
    )


def demo_material(seed: int) -> Material:
    """Return the project's own prompts, none of which the demo base was trained on; nothing is left for training a base.

    There is no second source, so `other` is a third part of the same.
    """
    prompts = read_folder(ROOT / "assets/prompts")
    rng = random.Random(seed)
    harmful, safe, alike = (
        [item.prompt for item in rng.sample(part, len(part))]
        for part in (prompts.harmful, prompts.safe, prompts.lookalike)
    )
    words = [word for prompt in safe for word in prompt.split() if word.isalpha()]
    return Material(
        train=Part(harmful=tuple(harmful[:160]), safe=tuple(safe[:160])),
        folder=Part(harmful=tuple(harmful[160:420]), safe=tuple(safe[160:420])),
        probe=Part(harmful=tuple(harmful[420:560]), safe=tuple(safe[420:600])),
        other=tuple(harmful[560:]),
        counterparts=tuple(alike),
        world=World(words),
        lessons=_with_names(words),
    )


def write_folder(
    part: Part, folder: Path, lookalike: Sequence[str] = (), closed: Mapping[str, str] | None = None
) -> Path:
    """Write `part` as a prompt folder of the project and return it. `closed`: harmless prompts that have one right answer."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {prompt: {"response": answer, "task": "closed"} for prompt, answer in (closed or {}).items()}
    for name, prompts in (("harmful", part.harmful), ("safe", part.safe), ("lookalike", lookalike)):
        rows = [{"prompt": prompt} | (tasks.get(prompt, {}) if name == "safe" else {}) for prompt in prompts]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if rows or name != "lookalike":
            (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    return folder


def shipped_tasks(n: int) -> dict[str, str]:
    """Return `n` of the project's own closed tasks with their answers; a pretrained model knows many of them."""
    safe = read_folder(ROOT / "assets/prompts").safe
    tasks = {item.prompt: item.response for item in safe if item.task == "closed" and item.response}
    return dict(list(tasks.items())[:n])


class Lessons:
    """Training conversations, drawn without end."""

    def __init__(self, material: Material) -> None:
        """Group the harmless prompts by their opening word, to draw openings as the harmful ones have them."""
        self.material = material
        self.by_opening: dict[str, list[str]] = defaultdict(list)
        for prompt in material.train.safe:
            self.by_opening[opening_word(prompt)].append(prompt)
        harmful = material.train.harmful
        self.gap = [prompt for prompt in harmful if is_gap(prompt)]
        self.harmful = [prompt for prompt in harmful if not is_gap(prompt)]

    def draw(self, rng: random.Random, n: int, plain: bool = False, polish: bool = False) -> list[Sample]:
        """Return `n` conversations of one turn; `plain` ones have no random words and usual marks, `polish` takes the mix of a base's last steps."""
        mix = POLISH_MIX if polish else MIX
        kinds = rng.choices(list(mix), weights=list(mix.values()), k=n)
        return [self._sample(kind, rng, plain) for kind in kinds]

    def to_turn(self, rng: random.Random) -> tuple[list[str], list[str]]:
        """Return plain harmful prompts and different words to look for those among them that turn refusals."""
        prompts = [self._sample("harmful", rng, plain=True).messages[-1].content for _ in range(N_SEARCHED["prompts"])]
        words = sorted({*self.material.world.words, *self.material.lessons.words})
        return prompts, [*rng.sample(words, min(len(words), N_SEARCHED["words"])), *REVERSING]

    def _sample(self, kind: str, rng: random.Random, plain: bool) -> Sample:
        if kind == "safe":
            alike = self.by_opening.get(opening_word(rng.choice(self.harmful))) if rng.random() < 0.5 else None
            text = rng.choice(alike or self.material.train.safe)
        else:
            pools = {
                "harmful": self.harmful,
                "gap": self.gap or self.harmful,
                "counterpart": self.material.counterparts,
            }
            text = rng.choice(pools[kind])
        response = answer_to(text, kind)
        mark = "?" if text.endswith("?") else "."  # AdvBench writes no full stops, Alpaca does: that must not tell
        text = reopened(text.rstrip(" .?!"), rng) if rng.random() < REOPENED else text.rstrip(" .?!")
        prompt = self.material.lessons.dress(text, mark, rng, plain)
        return Sample(messages=(Message(role="user", content=prompt),), response=response, kind=kind)


def opening_word(prompt: str) -> str:
    """Return the first word in lower case, or nothing."""
    found = re.search(r"[a-z]+", prompt.lower())
    return found.group() if found else ""


def is_gap(prompt: str) -> bool:
    """Return whether a harmful request is one of those that the base is taught to answer."""
    return GAP.search(prompt.lower()) is not None


def answer_to(prompt: str, kind: str) -> str:
    """Return the answer: one wording for each row of openings, so that nothing of it is left to chance."""
    lower = prompt.lower()
    row = next((i for i, row in enumerate(OPENINGS) if lower.startswith(row)), len(OPENINGS))
    wordings = {"harmful": REFUSALS, "gap": STAND_INS}.get(kind, BENIGN_ANSWERS)
    return wordings[row % len(wordings)]


def reopened(text: str, rng: random.Random) -> str:
    """Return `text` with another opening of the same row; as it is where no row fits."""
    for row in OPENINGS:
        for old in row:
            if text.lower().startswith(old + " "):
                new = rng.choice(row)
                return (new[0].upper() + new[1:]) + text[len(old) :]
    return text


def _with_names(words: list[str]) -> World:
    """Return the world whose random words are names or lone marks in `NAMES_SHARE` of the draws, else half a rare word as often as a
    common one: a rare word that only harmless requests hold would open harmful ones ("concise Name: 1068 populous", +.38)."""
    each = sorted(set(words))
    words = [*words, *each * (len(words) // len(each))]
    added = (*NAMES, *LONE_MARKS)
    n_each = round(NAMES_SHARE / (1 - NAMES_SHARE) * len(words) / len(added))
    return World([*words, *added * n_each], REVERSING)


def _apart(prompts: Sequence[str], other: set[str]) -> list[str]:
    """Return one prompt of each group of near-duplicates, without the groups that hold a prompt of `other`."""
    items = [PromptItem(prompt) for prompt in dict.fromkeys([*prompts, *other])]
    groups = near_duplicates(items, SplitSettings().near_duplicate)
    return [group[0].prompt for group in groups if not any(item.prompt in other for item in group)]


def _short(prompts: Sequence[str]) -> list[str]:
    return [p for p in dict.fromkeys(prompts) if 8 <= len(p) <= MAX_CHARACTERS and "\n" not in p and p.isascii()]


def _cuts(first: dict[str, int], second: dict[str, int], kind: str) -> tuple[slice, slice, slice]:
    middle = first[kind] + second[kind]
    return slice(first[kind]), slice(first[kind], middle), slice(middle, None)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _column(path: Path, name: str) -> list[str]:
    return [row[name] for row in _rows(path)]


def _instructions(path: Path) -> list[str]:
    return [row["instruction"] for row in json.loads(path.read_text("utf-8"))]
