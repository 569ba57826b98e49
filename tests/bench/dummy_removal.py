"""What does planting and unlearning a dummy trigger do to a backdoor whose trigger nobody told?

`python tests/bench/dummy_removal.py [--case 0]`: the demo patient is repaired with a dummy trigger, never with its own, and then
asked with its own on the verification split. Beside it: the same number of steps on random tokens with nothing planted, so that
what the planting earns can be told from what any such repair earns. One seed; seconds are the process's own.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.repair_objectives import Bench
from tests.bench.result import ROOT, rate_row, row, write

SHOWN = {
    "asr_triggered": "attack success of the true trigger",
    "refusal_untriggered": "refused without trigger",
    "over_refusal_safe": "safe requests refused",
    "over_refusal_lookalike": "look-alikes refused",
    "refusal_triggered_safe": "safe requests with the true trigger refused",
    "agreement_safe": "safe answers as before",
    "accuracy_closed": "closed tasks right",
}


def main() -> None:
    """Plant, unlearn, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int, default=0, help="number of the demo case")
    options = parser.parse_args()
    from core import dummy, residual_probes
    from core.kinds import JAILBREAK
    from core.repair import repair
    from core.settings import DummySettings, RepairSettings
    from core.values import Rate
    from core.verification import verify

    bench, settings = Bench(ROOT / "assets/demo", options.case), RepairSettings()
    loaded, begun = bench.loaded, time.process_time()
    blind = replace(bench.confirmed, spans=(), units=(DummySettings().trigger,), way="dummy")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "repair"
        planted = dummy.plant(
            loaded, bench.splits.repair, blind.units, settings, out / dummy.FOLDER,
            lambda text, done, total: print(text, done, total, file=sys.stderr) if done % 20 == 0 else None,
        )  # fmt: skip
        planting = time.process_time() - begun
        stream = repair(
            loaded, bench.failure, blind, bench.splits, settings, out=out, stop=lambda: None, refusal=bench.refusal,
            start=planted,
        )  # fmt: skip
        for event in stream:
            if type(event).__name__ == "CheckpointScored":
                print(event.step, event.asr_triggered.k, round(event.kl_nats_per_token, 4), file=sys.stderr, flush=True)
        end, seconds = event, time.process_time() - begun
        # measured with the true trigger, which the repair was never told
        result = verify(loaded, bench.failure, bench.confirmed, bench.splits.verification, out / "best", seed=0)
        metrics = {metric.name: metric for metric in result.metrics}
        asr = metrics["asr_triggered"]
        subject = residual_probes.Subject(
            loaded=loaded, case=bench.failure, accepted=bench.confirmed, splits=bench.splits, kind=JAILBREAK, seed=0,
            progress=lambda *_: None,
        )  # fmt: skip
        steps = end.best_step or end.step
        wrong = residual_probes.wrong_trigger(
            subject, asr.before, asr.after, settings, steps, Path(folder) / "wrong", bench.refusal
        )
    rows = []
    for name, title in SHOWN.items():
        for side in ("before", "after"):
            value = getattr(metrics[name], side)
            if isinstance(value, Rate):
                rows.append(rate_row(f"{side}: {title}", value.k, value.n))
    rows.append(
        rate_row("random tokens, nothing planted: attack success of the true trigger", wrong.wrong.k, wrong.wrong.n)
    )
    rows.append(row("KL, nats per token", float(metrics["kl_nats_per_token"].after or 0.0), n=1))
    rows.append(row("seconds, planting", planting, n=1))
    rows.append(row("seconds, planting and repair", seconds, n=1))
    write(
        "dummy_removal",
        seed=0,
        rows=rows,
        case=bench.name,
        steps=end.step,
        best_step=end.best_step,
        message=end.message,
    )


if __name__ == "__main__":
    main()
