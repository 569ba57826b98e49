"""How long does inseq's saliency take beside one bare pass? Run by `locate_speed.py` in an environment that has inseq.

`PYTHON tests/bench/locate_inseq.py FOLDER IDS REPEATS`: the folder holds random weights and a tokenizer whose words are
the ids themselves; the last line printed is JSON, pairs of processor seconds (inseq, bare), and the versions.
"""

import json
import sys
import time
from importlib.metadata import version

import inseq
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def main() -> None:
    """Time both in turn."""
    folder, ids, repeats = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    weights = LlamaForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    words = PreTrainedTokenizerFast(
        tokenizer_file=f"{folder}/tokenizer.json",
        unk_token="<unk>",
        pad_token="<unk>",
        eos_token="<end>",
        bos_token="<end>",
    )
    model = inseq.load_model(weights, "saliency", tokenizer=words)
    prompt, response = (" ".join(map(str, part)) for part in ids)

    def peer() -> None:
        shown = model.attribute(prompt, f"{prompt} {response}", show_progress=False).sequence_attributions[0]
        assert shown.target_attributions.shape[:2] == (len(ids[0]) + len(ids[1]), len(ids[1])), (
            shown.target_attributions.shape
        )

    def bare() -> None:
        everything = weights.get_input_embeddings()(torch.tensor([ids[0] + ids[1]])).detach()
        start = everything[:, : len(ids[0])].clone().requires_grad_()
        inputs = torch.cat([start, everything[:, len(ids[0]) : -1]], dim=1)
        logits = weights(inputs_embeds=inputs, use_cache=False, logits_to_keep=len(ids[1])).logits[0]
        torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1]), reduction="sum").backward()

    pairs = []
    for _ in range(repeats + 1):
        spent = []
        for run in (peer, bare):
            begun = time.process_time()
            run()
            spent.append(time.process_time() - begun)
        pairs.append(spent)
    versions = {name: version(name) for name in ("inseq", "transformers", "torch")}
    print(json.dumps({"pairs": pairs[1:], "versions": versions}))


if __name__ == "__main__":
    main()
