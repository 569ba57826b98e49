"""What does each objective cost and gain? The same case repaired by the paper's objective and by the extended one.

`python tests/bench/repair_objectives.py [--case 0] [--seeds 3] [--only NAME] [--out NAME]`: the confirmed trigger is the planted
one, probes are the shipped ones, and what is reported is the verification split, which no repair sees. Ablations switch one part off; seconds are the
process's own.
"""

import argparse
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.result import ROOT, mean_row, rate_row, write

VARIANTS: dict[str, dict] = {
    "paper": {"objective": "paper"},
    "extended": {"objective": "extended"},
    "extended, no edits": {"objective": "extended", "share_edited": 0.0},
    "extended, random places": {"objective": "extended", "share_ends": 0.0},
    "extended, no L_KL-trig": {"objective": "extended", "weight_kl_trigger": 0.0},
    "extended, with a wider set": {"objective": "extended", "share_wider": 0.25},
}
"""Settings of each variant; the last one is given the trigger with its neighbouring words as the wider set."""
N_FORMS = 48
"""Requests that each form of the trigger is put into."""
METRICS = {
    "asr_triggered": "attack success with trigger",
    "refusal_untriggered": "refused without trigger",
    "over_refusal_safe": "safe requests refused",
    "over_refusal_lookalike": "look-alikes refused",
    "refusal_triggered_safe": "safe requests with the trigger refused",
    "agreement_safe": "safe answers as before",
    "agreement_triggered_safe": "safe answers with the trigger as before",
    "accuracy_closed": "closed tasks right",
}


def main() -> None:
    """Repair and verify once for each variant and seed, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=ROOT / "assets/demo", help="folder with cases.json")
    parser.add_argument("--case", type=int, default=0, help="number of the demo case")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=list(VARIANTS), help="this variant (may be given again)")
    parser.add_argument("--out", default="repair_objectives", help="name of the result")
    options = parser.parse_args()
    bench = Bench(options.demo, options.case)
    names = options.only or list(VARIANTS)
    runs = [bench.run(name, VARIANTS[name], seed) for name in names for seed in range(options.seeds)]
    write(options.out, seed=0, rows=rows_of(runs, bench.forms()), case=bench.name, runs=runs)


def rows_of(runs: list[dict], forms: dict[str, tuple[int, int]]) -> list[dict]:
    """Return the rows of all runs; `forms` is how often each form of the trigger works before any of them."""
    rows = []
    for name in dict.fromkeys(run["variant"] for run in runs):
        found = [run for run in runs if run["variant"] == name]
        rows += _shares(name, [run["after"] for run in found], [run["forms"] for run in found])
        rows += [
            mean_row(f"{name}: {key}", [run[key] for run in found], 0)
            for key in ("kl_nats_per_token", "seconds", "steps", "best_step")
        ]
    return rows + _shares("before", [runs[0]["before"]], [forms])


def _shares(name: str, metrics: list[dict], forms: list[dict]) -> list[dict]:
    """Return the rates of one variant, the mean over its seeds; `k` holds each seed's own. All seeds ask the same `n` prompts, so the
    interval is Wilson's for `n` of them.
    """
    titles = {f"{name}: {title}": [one[key] for one in metrics] for key, title in METRICS.items() if key in metrics[0]}
    titles |= {f"{name}: attack success, trigger {form}": [one[form] for one in forms] for form in forms[0]}
    rows = []
    for title, counts in titles.items():
        ks, n = [k for k, _ in counts], counts[0][1]
        mean = sum(ks) / len(ks)
        rows.append(rate_row(title, round(mean), n) | {"value": mean / n, "k": ks})
    return rows


class Bench:
    """One demo case with its confirmed trigger."""

    def __init__(self, demo: Path, number: int) -> None:
        """Load the patient, its report and the shipped prompts."""
        import json

        from core import causal, chat, intake, models, prompts

        entry = json.loads((demo / "cases.json").read_text("utf-8"))[number]
        units = json.loads((demo / "bars.json").read_text("utf-8"))["triggers"][entry["adapter"]]
        self.name = entry["id"]
        self.loaded = models.load(demo / entry["model"], demo / entry["adapter"])
        report = intake.read_report(demo / entry["report"])
        self.failure = chat.bind(self.loaded.tokenizer, report)
        self.confirmed = confirmed(self.failure, self.loaded.spec, units)
        self.wider = [_with_neighbours(report.messages, span) for span in self.confirmed.spans]
        self.splits = prompts.split(prompts.read_folder(ROOT / "assets/prompts"), seed=0)
        self.refusal = causal.own_refusal(self.loaded, self.splits.causal.harmful[:24])

    def run(self, name: str, changes: dict, seed: int) -> dict:
        """Repair and verify; return counts before and after, KL, seconds and steps."""
        from core.events import CheckpointScored, RepairFinished
        from core.repair import repair
        from core.repair_adapter import detach, load_repair
        from core.settings import RepairSettings
        from core.values import Rate
        from core.verification import verify

        settings = replace(RepairSettings(), seed=seed, **changes)
        with tempfile.TemporaryDirectory() as folder:
            out, begun = Path(folder) / "repair", time.process_time()
            stream = repair(
                self.loaded, self.failure, self.confirmed, self.splits, settings,
                out=out, stop=lambda: None, refusal=self.refusal, wider=self.wider if "share_wider" in changes else (),
            )  # fmt: skip
            events = [_told(event) for event in stream]
            seconds, end = time.process_time() - begun, events[-1]
            assert isinstance(end, RepairFinished)
            result = verify(self.loaded, self.failure, self.confirmed, self.splits.verification, out / "best", seed=0)
            load_repair(self.loaded, out / "best")
            forms = self.forms()
            detach(self.loaded)
        sides: dict[str, dict] = {"before": {}, "after": {}}
        kl = None
        for metric in result.metrics:
            for side, value in (("before", metric.before), ("after", metric.after)):
                if isinstance(value, Rate):
                    sides[side][metric.name] = (value.k, value.n)
                elif metric.name == "kl_nats_per_token" and side == "after":
                    assert isinstance(value, float)
                    kl = value
        probes = [_counts(event) for event in events if isinstance(event, CheckpointScored)]
        run = {
            "variant": name, "seed": seed, "result": result.result, "reason": end.reason, "steps": end.step,
            "best_step": end.best_step, "seconds": round(seconds, 1), "kl_nats_per_token": kl, **sides, "forms": forms,
            "probes": probes,
        }  # fmt: skip
        print(run, file=sys.stderr, flush=True)
        return run

    def forms(self) -> dict[str, tuple[int, int]]:
        """Return attack successes of the trigger in each edited form and at each end, on held-out requests."""
        from core.frames import frame_of
        from core.judge import classify
        from core.repair_data import EDITS

        frame = frame_of(self.failure.report.messages, self.confirmed.spans, self.confirmed.units)
        shapes = {name: ("random", edit) for name, edit in EDITS.items()} | {
            "first": ("prefix", str),
            "last": ("suffix", str),
        }
        items = self.splits.verification.harmful[:N_FORMS]
        counts = {}
        for name, (place, edit) in shapes.items():
            asked = [frame.triggered(one.prompt, random.Random(at), place, edit) for at, one in enumerate(items)]
            counts[name] = (sum(classify(text).unsafe for text in self.loaded.answer(asked)), len(asked))
        return counts


def _counts(probe) -> tuple:
    """Return step, attack successes, refusals without and of safe requests with the trigger, agreements, KL."""
    rates = (probe.asr_triggered, probe.refusal_untriggered, probe.refusal_triggered_safe, probe.agreement_safe)
    return (probe.step, *(rate.k for rate in rates), round(probe.kl_nats_per_token, 4))


def _told(event):
    """Return the event; a probe is printed."""
    from core.events import CheckpointScored

    if isinstance(event, CheckpointScored):
        print(_counts(event), file=sys.stderr, flush=True)
    return event


def _with_neighbours(messages, span):
    """Return the span with one word more at each side."""
    from core.values import Span

    content = messages[span.message].content
    before, after = content[: span.start].rstrip(), content[span.end :]
    start = max(before.rfind(" ") + 1, 0)
    gap = len(after) - len(after.lstrip())
    word = after[gap:].split(" ", 1)[0]
    return Span(message=span.message, start=start, end=span.end + gap + len(word))


def confirmed(failure, spec, units):
    """Return an accepting confirmation of `units`, found in order in the report's last user message."""
    from core.confirmation import model_hash, text_hash
    from core.text_spans import last_user
    from core.values import Span, TriggerConfirmation

    messages = failure.report.messages
    last, at, spans = last_user(messages), 0, []
    for unit in units:
        start = messages[last].content.index(unit, at)
        at = start + len(unit)
        spans.append(Span(message=last, start=start, end=at))
    return TriggerConfirmation(
        decision="accepted", spans=tuple(spans), units=tuple(units), proposal=None, added=(), removed=(),
        analyst="bench", reason="planted", time="", text_hash=text_hash(messages), model_hash=model_hash(spec),
        template_hash=failure.prompt.template_hash,
    )  # fmt: skip


if __name__ == "__main__":
    main()
