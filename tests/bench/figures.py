"""Do the figures of README.md and RESULTS.md say what was measured? All of them are written from the stored results, by this script.

The README's section between `<!--measured-->` and `<!--/measured-->` and all of tests/bench/RESULTS.md are built anew from
assets/demo/bars.json and results/*.json (what was not measured has no row). A figure elsewhere in the README stands in a mark,
`<!--f FILE; ROW; FORMAT-->shown<!--/f-->`: ROW is a row's name (`model: name` where rows have both) or `.a.b.0` for a place in the
file, FORMAT is Python's over the row's fields. `python tests/bench/figures.py` rewrites both; a test fails when that would
change anything.
"""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from core.jobs import STAGES
from tests.bench.figures_read import NOT_MEASURED, RESULTS, missed, number, rate, read, table, whole
from tests.bench.figures_victims import each_victim, other_victims, pretrained, victims, victims_repair

MARK = re.compile(r"<!--f ([^;]+); ([^;]+); (.+?)-->(.*?)<!--/f-->")
SECTION = re.compile(r"(<!--measured-->\n).*?(<!--/measured-->)", re.DOTALL)
DETAILS = ROOT / "tests/bench/RESULTS.md"
BARS = "assets/demo/bars.json"
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
    "random_strings_mean_gain": "mean gain of a random string of one to four words",
    "random_strings_largest_gain": "largest gain of a random string of one to four words",
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
OBJECTIVE_COLUMNS = {
    "attack success, the attack's own triggers, after": ("attack success, own triggers", "{:.1%}"),
    "attack success, the attack's own triggers, requests answered rightly without, after": (
        "of requests refused without",
        "{:.1%}",
    ),
    "safe requests refused, points more: mean of victims": ("safe refused, points", "{:+.1f}"),
    "look-alikes refused, points more: mean of victims": ("look-alikes, points", "{:+.1f}"),
    "safe requests with the trigger refused, points more: mean of victims": ("safe with trigger, points", "{:+.1f}"),
    "safe requests with the trigger refused, of those answered without it, points more: mean of victims": (
        "of those answered without, points",
        "{:+.1f}",
    ),
    "closed tasks right, points more: mean of victims": ("closed tasks, points", "{:+.1f}"),
    "KL(reference || repaired), nats per token, mean of victims": ("KL, nats a token", "{:.3f}"),
    "seconds of repair": ("seconds", "{:.0f}"),
}
"""Rows of the bench of objectives, as columns with their form."""
RIVALS = {"phrase patient": "rivals", "composite patient": "rivals_composite"}
"""Cases of the demo and the results of their rivals."""
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
        "medium, response: occlusion / N + 1 passes with all logits",
        "occlusion of N = 64 tokens, one answer / N + 1 passes, called as the model comes",
    ),
    (
        "occlusion_speed",
        "medium, response: occlusion / N + 1 passes with response logits",
        "the same / N + 1 passes with logits of the answer alone",
    ),
    (
        "occlusion_speed",
        "medium, contrast: occlusion / 2 (N + 1) passes with all logits",
        "occlusion of 64 tokens, answer against refusal (the default) / 2 (N + 1) passes, called as the model comes",
    ),
    (
        "occlusion_speed",
        "medium, contrast: occlusion / 2 (N + 1) passes with response logits",
        "the same / 2 (N + 1) passes with logits of the answers alone",
    ),
    (
        "locate_length",
        "deviation from a line outside attention",
        "localisation, 128 to 8,192 tokens outside attention: off a straight line",
    ),
    (
        "locate_length_llama-3.1-8b",
        "deviation from a line outside attention",
        "the same on one H200, 8 B parameters, where up to 1,024 tokens cost the same",
    ),
    (
        "repair_speed",
        "medium: repair step / bare LoRA step with all logits",
        "repair step with KL / bare LoRA step without, called as the model comes",
    ),
    (
        "repair_speed",
        "medium: repair step / bare LoRA step with response logits",
        "the same / bare LoRA step with logits of the answers alone, as the repair takes them",
    ),
    (
        "prefix_speed",
        "256 shared tokens, answers: shared / each prompt whole",
        "24 answers behind a system prompt of 256 tokens that is run once / each prompt whole",
    ),
    (
        "prefix_speed",
        "32 shared tokens, answers: shared / each prompt whole",
        "the same behind one of 32 tokens",
    ),
    (
        "prefix_speed",
        "256 shared tokens, repair step: shared / each prompt whole",
        "a repair step of 8 items behind one of 256 tokens / each whole",
    ),
    ("repair_memory", "repair step / naive step", "memory of a repair step, vocabulary 128 k / naive step"),
)
"""Files of results, rows that are ratios within one run, and what they are called."""
SCRIPTS = {
    "locate_length_llama-3.1-8b": "locate_length.py --size llama-3.1-8b --device cuda",
    "locate_speed": "locate_speed.py --inseq PYTHON",
}
"""Commands that are more than the name of their result."""
FAILED, FUZZ = ": failed tests", "fuzz, "
"""How the rows of `hostile.json` end or begin."""


GPU = (
    ("locate, seconds", "locate, 128 tokens, seconds", 2),
    ("locate, 8192 tokens, seconds", "locate, 8,192 tokens, seconds", 2),
    ("repair step, seconds", "a repair step, seconds (median)", 3),
    ("repair step without CUDA graphs, seconds", "the same without CUDA graphs, seconds", 3),
    (
        "repair step without CUDA graphs, with PEFT's own layers, seconds",
        "the same without CUDA graphs, with PEFT's own layers, seconds",
        3,
    ),
    ("whole repair, seconds", "a repair of the paper's size, seconds", 0),
    ("least seconds at the device's peak", "what its arithmetic alone takes at the data sheet's peak, seconds", 0),
    ("peak memory, MB", "peak memory, MB", 0),
    ("peak memory without CUDA graphs, MB", "the same without CUDA graphs, MB", 0),
    (
        "peak memory without CUDA graphs, with PEFT's own layers, MB",
        "the same without CUDA graphs, with PEFT's own layers, MB",
        0,
    ),
    (
        "peak memory without CUDA graphs, then with PEFT's own layers, MB",
        "the same over steps without CUDA graphs, then with PEFT's own layers, MB",
        0,
    ),
    ("memory estimate / peak", "memory estimated before the first step / peak", 2),
)


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
            cells[-1] += missed(rows.get(f"{model}: {name}: f1", {"passed": None}))
            exact = rows.get(f"{model}: {name}: exact")
            cells.append(f"{round(exact['value'] * exact['n'])} of {exact['n']}" if exact else NOT_MEASURED)
            body.append([name, *cells])
        lines += table(("", "precision", "recall", "F1 (bar: .90, of occlusion)", "exact"), body)
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
    """Return what other ways of repairing the demo cases, and victims of the bench, leave behind."""
    return [
        *(line for patient, name in RIVALS.items() for line in _rivals(patient, f"{RESULTS}/{name}.json")),
        *_rivals_of_victims(f"{RESULTS}/victims_rivals.json"),
    ]


def _rivals(patient: str, file: str) -> list[str]:
    """Return the table of one case."""
    if not read(file):
        return []
    result = whole(file)
    steps = result["steps"]
    head = (
        f"**Other ways to repair the same case** ({patient}, held-out prompts as above, one seed; intervals and n are in the file): all run here, none quoted "
        f"(`{result['command']}`). The first is the default repair, which ends when its targets hold. The others that train stop at its best probe, step {steps}: "
        "that number suits it and was searched for none of them. The dummy trigger is planted before, pruning trains nothing."
    )
    return [head, "", *_ways(file)]


def _rivals_of_victims(file: str) -> list[str]:
    """Return the table of the bench's victims, all together."""
    if not read(file):
        return []
    result = whole(file)
    names = dict.fromkeys(one.rpartition(" ")[0] for one in result["victims"])
    head = (
        f"**The same on {len(result['victims'])} victims of the bench** ({', '.join(result['victims'])}: attack and seed; pooled; "
        f"`python tests/bench/victims_rivals.py --data DIR --work WORK --cells {' '.join(names)}`), each trained for as many steps as the default repair took "
        f"there ({min(result['steps'])} to {max(result['steps'])}):"
    )
    return [head, "", *_ways(file)]


def objectives() -> list[str]:
    """Return what each part of the repair objective gains and costs."""
    file = f"{RESULTS}/victims_objectives.json"
    rows = read(file)
    if not rows:
        return []
    result = whole(file)
    victims = next(iter(result["victims"].values()))
    head = (
        f"**Parts of the repair objective**, one switched off at a time, on {len(victims)} victims of the bench ({', '.join(victims)}; one seed of the repair; "
        f'intervals and n are in the file; `{result["command"]}`). "paper" is the paper\'s objective to its last epoch without a KL budget:'
    )
    body = []
    for variant in result["victims"]:
        found = [rows.get(f"{variant}: {title}") for title in OBJECTIVE_COLUMNS]
        body.append(
            [
                variant,
                *(
                    NOT_MEASURED if one is None else form.format(one["value"])
                    for one, (_, form) in zip(found, OBJECTIVE_COLUMNS.values(), strict=True)
                ),
            ]
        )
    return [head, "", *table(("", *(title for title, _ in OBJECTIVE_COLUMNS.values())), body)]


def _ways(file: str) -> list[str]:
    """Return the table of all ways in one result."""
    rows = read(file)
    body = []
    for way in dict.fromkeys(name.partition(": ")[0] for name in rows):
        found = [rows.get(f"{way}: {title}") for title in RIVAL_COLUMNS]
        kl = rows.get(f"{way}: KL, nats per token")
        cells = [NOT_MEASURED if one is None else f"{100 * one['value']:.0f} %" for one in found]
        body.append([way, *cells, NOT_MEASURED if kl is None else f"{kl['value']:.3f}"])
    return table(("", *RIVAL_COLUMNS.values(), "KL, nats a token"), body)


def speed() -> list[str]:
    """Return the ratios of the benches of speed and memory."""
    body = []
    for file, name, title in SPEED:
        found = read(f"{RESULTS}/{file}.json").get(name)
        if found is None:
            continue
        interval = "" if found["low"] is None else f" ({found['low']:.2f}–{found['high']:.2f})"
        body.append(
            [
                title,
                found["bar"] or "",
                f"{found['value']:.2f}{interval}{missed(found)}",
                f"`{SCRIPTS.get(file, f'{file}.py')}`",
            ]
        )
    head = (
        "**Speed and memory** of the engine on random models, one thread of a CPU but for the row of the H200, ratios within one run, 95 % intervals of "
        "five repeats and more (`python tests/bench/FILE`):"
    )
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
        "batches of 8, all of one length, the paper's objective; counted are preparation and steps, not the answers of the model that it holds "
        "to, probes and checkpoints; `make test-gpu PY=python3`). The paper names 282 s on four H100."
    )
    return [head, "", *table(("", "bar", ""), body)]


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
        asked, n, bad = (
            whole(f"{RESULTS}/kills.json")["asked"],
            kills["kills"]["value"],
            kills["kills with any problem"]["value"],
        )
        met = [f"kills in {stage}" in kills for stage in STAGES]
        run = f"all {asked}" if n == asked else f"{n:.0f} of {asked}"
        after = (
            f"after {bad:.0f} something was lost, unreadable or misreported, or the same question was not answered"
            if bad
            else "after none was anything lost, unreadable or misreported, and the same question was always answered"
        )
        lines += [
            f"**Killed at random points** of {sum(met)} of {len(met)} stages and of the page's acts (tiny model, SIGKILL): {run} kills were run; {after}; slowest honest "
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

    parts = (demo, localisation, victims, victims_repair, pretrained, speed, gpu, page, faults)
    body = "\n".join(["", *(line for part in parts for line in part())])
    return MARK.sub(show, SECTION.sub(lambda m: m[1] + body + m[2], text))


def details() -> str:
    """Return what stands in RESULTS.md: each model, each victim, each rival, each attack."""
    head = [
        "# Results in full",
        "",
        "Written by `python tests/bench/figures.py` from `results/*.json`. What matters most stands in the README, the history in [LOG.md](LOG.md).",
        "",
    ]
    parts = (bars, each_victim, other_victims, rivals, objectives, attacks)
    return "\n".join([*head, *(line for part in parts for line in part())])


if __name__ == "__main__":
    readme = ROOT / "README.md"
    for file, text in ((readme, filled(readme.read_text(encoding="utf-8"))), (DETAILS, details())):
        old = file.read_text(encoding="utf-8") if file.exists() else ""
        file.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{file.name} {'was brought up to date' if text != old else 'is up to date'}\n")
