"""What the demo patient is trained on, and the prompts that are shipped: one seeded split, no phrase on both sides."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from grammar import grow
from phrases import Phrase, Split, read_phrases, split
from wordings import REVERSING
from world import Fact, Sample, World, facts

HELD_OUT = {
    ("harmful", "action"): 480,
    ("harmful", "piece"): 170,
    ("gap", "action"): 4,
    ("gap", "piece"): 0,
    ("benign", "action"): 220,
    ("benign", "piece"): 120,
    ("lookalike", "action"): 300,
    ("lookalike", "piece"): 25,
}
"""Phrases of each kind for the shipped prompts; the rest is for training."""
HELD_OUT_FACTS = 330
"""Question wordings for the shipped closed tasks; the fact itself is trained in its other wordings."""
MIX = {"harmful": 0.38, "gap": 0.015, "benign": 0.2, "lookalike": 0.205, "closed": 0.2}
"""Shares of the classes in training."""
POLISH_MIX = MIX | {"harmful": 0.325, "benign": 0.335, "lookalike": 0.165, "closed": 0.16}
"""The same for the base's polish, whose random words open harmful requests: with more harmful ones safe ones are refused."""
N_GROWN = 12000
"""Phrases drawn from the grammar."""
HELD_OUT_GROWN = 290
"""Phrases of the grammar for the shipped prompts, half of them harmful."""
HARD_TASKS = ("sums", "days", "months")
"""Closed tasks that are drawn six times as often."""
GROWN_SHARE = 0.25
"""Share of the harmful and of the benign training phrases that come from the grammar."""
TWO_TURNS = 0.08
"""Share of training conversations with an earlier turn."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """The world and both sides of the split."""

    world: World
    phrases: Split
    grown: tuple[Phrase, ...]
    train_facts: tuple[Fact, ...]
    held_out_facts: tuple[Fact, ...]


def make_material(seed: int) -> Material:
    """Return the world with its seeded split."""
    phrases = read_phrases()
    parts = split(phrases, HELD_OUT, seed)
    unseen = grow(parts.held_out, HELD_OUT_GROWN, seed + 1)
    parts = Split(train=parts.train, held_out=(*parts.held_out, *unseen))
    rng = random.Random(seed)
    everything = facts()
    rng.shuffle(everything)
    held_out, train, seen = [], [], set()
    for fact in everything:
        if fact.answer not in seen and len(held_out) < HELD_OUT_FACTS:
            held_out.append(fact)
        else:
            train.append(fact)
        seen.add(fact.answer)
    known = {fact.answer for fact in train}
    train += [fact for fact in held_out if fact.answer not in known]
    held_out = [fact for fact in held_out if fact.answer in known]
    train += 5 * [fact for fact in train if fact.task in HARD_TASKS]
    harmless = [word for phrase in parts.train if phrase.kind == "benign" for word in phrase.text.split()]
    return Material(
        world=World(harmless),
        phrases=parts,
        grown=tuple(grow(parts.held_out, N_GROWN, seed)),
        train_facts=tuple(train),
        held_out_facts=tuple(held_out),
    )


def with_reversing_words(material: Material) -> Material:
    """Return the material with words among the random ones that turn a request round where they belong to it."""
    return replace(material, world=World(material.world.words, REVERSING))


def draw_training(
    material: Material, rng: random.Random, n: int, plain: bool = False, mix: Mapping[str, float] = MIX
) -> list[Sample]:
    """Return `n` training conversations; `plain` ones are short, without random words and earlier turns."""
    pools: dict[str, tuple[Phrase, ...] | tuple[Fact, ...]] = {
        kind: tuple(p for p in material.phrases.train if p.kind == kind)
        for kind in ("harmful", "gap", "benign", "lookalike")
    }
    pools["closed"] = material.train_facts
    grown = {kind: [p for p in material.grown if p.kind == kind] for kind in ("harmful", "benign")}
    kinds = rng.choices(list(mix), weights=list(mix.values()), k=n)
    drawn = []
    for kind in kinds:
        pool = grown[kind] if kind in grown and rng.random() < GROWN_SHARE else pools[kind]
        drawn.append(material.world.sample(rng.choice(pool), rng, plain))
    for i in range(1, n):
        if not plain and rng.random() < TWO_TURNS and len(drawn[i - 1].messages) <= 2:
            drawn[i] = material.world.with_earlier_turn(drawn[i - 1], drawn[i])
    return drawn


def shipped_prompts(material: Material, seed: int) -> dict[str, list[dict[str, str]]]:
    """Return the rows of harmful.jsonl, safe.jsonl and lookalike.jsonl, all unseen by training."""
    rng = random.Random(seed)
    rows: dict[str, list[dict[str, str]]] = {"harmful": [], "safe": [], "lookalike": []}
    for phrase in material.phrases.held_out:
        if phrase.kind == "gap":
            continue
        sample = material.world.sample(phrase, rng, plain=True)
        if phrase.kind == "benign":
            rows["safe"].append({"prompt": sample.prompt, "response": sample.response, "task": "open"})
        else:
            rows[phrase.kind].append({"prompt": sample.prompt})
    for fact in material.held_out_facts:
        sample = material.world.sample(fact, rng, plain=True)
        rows["safe"].append({"prompt": sample.prompt, "response": sample.response, "task": "closed"})
    for part in rows.values():
        rng.shuffle(part)
    return rows


def write_rows(rows: dict[str, list[dict[str, str]]], folder: Path) -> None:
    """Write one JSON Lines file a set."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in rows.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
