"""How near is paper-mode localisation to one bare forward and backward pass, and how far ahead of Captum and inseq?

`python tests/bench/locate_speed.py [--inseq PYTHON]`. The bare pass is plain torch on the same input embeddings, weights
frozen and logits of the response alone, so nothing is left to save. Captum's `LLMGradientAttribution` runs with its
cheapest method, gradient x activation of the embedding layer, and inseq with its saliency; both answer for the same 32 response
tokens. inseq does not go with this transformers: `--inseq` names the Python of an environment that has it, and the same random
weights are timed there against the same bare pass, so that the two ratios can be divided.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from core.attribution import attribute
from core.loaded import LoadedModel
from core.values import FailureCase, Target
from tests.bench.result import LEAST, row, write
from tests.bench.speed import in_turn, median_row, random_case, random_llama, ratio_row

N_PROMPT, N_RESPONSE = 64, 32
UNKNOWN, END = "<unk>", "<end>"


def bare(loaded: LoadedModel, case: FailureCase) -> torch.Tensor:
    """Return the norms of the loss gradient by plain torch."""
    ids = torch.tensor([[*case.prompt.ids, *case.response_ids]])
    n_prompt, n_response = len(case.prompt.ids), len(case.response_ids)
    everything = loaded.model.get_input_embeddings()(ids).detach()
    prompt = everything[:, :n_prompt].clone().requires_grad_()
    inputs = torch.cat([prompt, everything[:, n_prompt:-1]], dim=1)
    logits = loaded.model(inputs_embeds=inputs, use_cache=False, logits_to_keep=n_response).logits[0]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, n_prompt:], reduction="sum")
    loss.backward()
    return prompt.grad[0].norm(dim=-1)


def captum(loaded: LoadedModel, case: FailureCase) -> torch.Tensor:
    """Return Captum's scores of the prompt tokens for the whole response."""
    from captum.attr import LayerGradientXActivation, LLMGradientAttribution, TextTokenInput

    method = LayerGradientXActivation(loaded.model, loaded.model.get_input_embeddings())
    words = id_words(int(loaded.model.config.vocab_size))
    explained = LLMGradientAttribution(method, words)
    inputs = TextTokenInput(" ".join(map(str, case.prompt.ids)), words)
    found = explained.attribute(inputs, target=" ".join(map(str, case.response_ids)))
    assert found.token_attr.shape == (len(case.response_ids), len(case.prompt.ids)), found.token_attr.shape
    return found.seq_attr


@cache
def id_words(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are the ids themselves, so that a peer that takes text reads exactly the case's tokens."""
    special = {0: UNKNOWN, 1: END}  # no digits in them: they would split other words
    words = Tokenizer(WordLevel({special.get(at, str(at)): at for at in range(vocabulary)}, unk_token=UNKNOWN))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token=UNKNOWN, pad_token=UNKNOWN, eos_token=END)


def against_inseq(python: str, size: str, repeats: int) -> dict[str, Any]:
    """Return `pairs`, seconds of (inseq's saliency, the bare pass) in the other environment on the same weights, and its
    `versions`."""
    loaded, case = random_llama(size), random_case(N_PROMPT, N_RESPONSE)
    with tempfile.TemporaryDirectory() as folder:
        loaded.model.save_pretrained(folder)
        id_words(int(loaded.model.config.vocab_size)).save_pretrained(folder)
        ids = json.dumps([list(case.prompt.ids), list(case.response_ids)])
        command = [python, str(Path(__file__).with_name("locate_inseq.py")), folder, ids, str(repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Time all of it and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--inseq", metavar="PYTHON", help="a Python with inseq; without it that row is left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    peers: dict[str, Any] = {}
    for size in ("medium", "tiny"):
        loaded, case = random_llama(size), random_case(N_PROMPT, N_RESPONSE)
        held = size == "medium"
        ours = partial(attribute, loaded, case, "paper", Target())
        torch.testing.assert_close(torch.tensor(ours().scores), bare(loaded, case), rtol=1e-4, atol=1e-6)
        pairs = in_turn(ours, partial(bare, loaded, case), options.repeats)
        rows.append(ratio_row(f"{size}: paper mode / bare forward and backward", pairs, "<= 1.15" if held else None))
        to_bare = rows[-1]["value"]
        rows.append(median_row(f"{size}: paper mode, seconds", [one for one, _ in pairs]))
        peer = in_turn(partial(captum, loaded, case), ours, LEAST)
        rows.append(ratio_row(f"{size}: Captum / paper mode", peer, ">= 15" if held else None))
        if options.inseq:
            peers[size] = against_inseq(options.inseq, size, LEAST)
            ahead = [one / other / to_bare for one, other in peers[size]["pairs"]]
            rows.append(median_row(f"{size}: inseq saliency / paper mode", ahead, ">= 5" if held else None))
    if not options.inseq:
        peers = {"note": "inseq was not there: it needs an environment of its own with an older transformers (--inseq)"}
    rows += [row("prompt tokens", N_PROMPT, n=1), row("response tokens", N_RESPONSE, n=1)]
    write("locate_speed", seed=0, rows=rows, inseq=peers)


if __name__ == "__main__":
    main()
