"""How much memory does a repair step take at a vocabulary of 128 k, beside the naive step with two models and full logits?

`python tests/bench/repair_memory.py`. Each side is a process of its own; its maximum resident size, less that of a process which
imports the same and does nothing, is what counts: weights, adapter, optimiser, activations and all over the vocabulary. The
naive step holds the reported model twice, takes both models' logits of all positions, and computes KL and cross-entropy
from them.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.bench.repair_speed import bare_model, sequences, trainer
from tests.bench.result import row, write
from tests.bench.speed import median_row, random_llama

VOCABULARY, N_PROMPT, N_RESPONSE, N_SEQUENCES, STEPS = 128_000, 64, 48, 8, 2


def engine() -> None:
    """Take steps of the engine."""
    repairing = trainer(random_llama("small", VOCABULARY), sequences(N_SEQUENCES, N_PROMPT, N_RESPONSE, VOCABULARY))
    for step in range(1, STEPS + 1):
        repairing.step(step)


def naive() -> None:
    """Take steps with a second model as reference and full logits of both."""
    made = sequences(N_SEQUENCES, N_PROMPT, N_RESPONSE, VOCABULARY)
    reference, model = random_llama("small", VOCABULARY).model, bare_model(random_llama("small", VOCABULARY))
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids = torch.tensor([one.prompt_ids + one.response_ids for one in made])
    answer = slice(N_PROMPT - 1, -1)
    for _ in range(STEPS):
        logits = model(input_ids=ids, use_cache=False).logits.float()
        with torch.no_grad():
            wanted = reference(input_ids=ids, use_cache=False).logits.float()
        log_q, log_p = logits.log_softmax(-1), wanted.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)[:, answer].sum()
        refusal = -log_q[:, answer].gather(-1, ids[:, N_PROMPT:, None])[: N_SEQUENCES // 2].sum()
        (refusal + kl).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def peak_mb(what: str) -> float:
    """Return the maximum resident size of a child process that does `what`."""
    done = subprocess.run([sys.executable, __file__, "--child", what], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure all three and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", choices=["empty", "engine", "naive"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        {"empty": lambda: None, "engine": engine, "naive": naive}[options.child]()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    empty = peak_mb("empty")
    ours = [peak_mb("engine") - empty for _ in range(options.repeats)]
    other = [peak_mb("naive") - empty for _ in range(options.repeats)]
    rows = [
        median_row("repair step / naive step", [a / b for a, b in zip(ours, other, strict=True)], "<= 0.35"),
        median_row("repair step, MB beyond the empty process", ours),
        median_row("naive step, MB beyond the empty process", other),
        row("empty process, MB", empty, n=1),
        row("vocabulary", VOCABULARY, n=1),
    ]
    write("repair_memory", seed=0, rows=rows)


if __name__ == "__main__":
    main()
