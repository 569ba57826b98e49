"""What do other ways of repairing the same case leave behind? All run here, on the same weights and prompts.

`python tests/bench/rivals.py [--case 0] [--only NAME] [--out NAME]`: the first way is the default repair; the others that train
stop at as many optimiser steps as it took to its best checkpoint, a number that suits it and was searched for none of them; their rates
have the same peak and rise and fall within their own steps. The dummy trigger is planted before that, pruning trains nothing. Reported
is the verification split, which none of them sees. One seed.

Every way ends as a LoRA adapter; pruning too, as the change that sets its neurons to nought. Sources: L2-SP arXiv 1802.01483,
pruning arXiv 1805.12185, CROW arXiv 2411.12768, dummy trigger arXiv 2606.11648. They are written anew, with published settings
where there are any: their authors' own code may do better or worse.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from peft.tuners.lora import LoraLayer

from core import causal, chat, dummy, intake, models, prompts, repair_adapter
from core.checkpoint_files import PLANTED
from core.confirmation import model_hash, text_hash
from core.events import RepairFinished
from core.frames import frame_of, render_ids
from core.kinds import JAILBREAK
from core.loaded import LoadedModel
from core.losses import cross_entropy_rows
from core.prompts import Splits
from core.repair import repair
from core.repair_data import answer_ids, chosen, own_answers
from core.repair_training import learning_rate, rate_at
from core.residual_probes import Subject
from core.response_pass import ResponsePass, ScoredSequence, base_model
from core.settings import DummySettings, RepairSettings
from core.text_spans import close_to_words, last_user
from core.values import FailureCase, Message, ModelSpec, Rate, Span, TriggerConfirmation, Verification
from core.verification import verify
from tests.bench.result import ROOT, rate_row, row, write

PRUNED = 0.2
"""Share of the MLP neurons of each layer that pruning takes out, those least active on safe prompts. Source: arXiv 1805.12185
prunes until accuracy falls; the share is an unverified choice."""
CROW_EPSILON, CROW_WEIGHT = 0.1, 5.5
"""Step of the embeddings along the sign of the gradient, and weight of consistency. Source: arXiv 2411.12768."""
L2_WEIGHT = 0.1
"""Half of it times the squared distance of the weights from theta0. Source: arXiv 1802.01483."""

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

Loss = Callable[[list[int]], torch.Tensor]
"""Loss of one step, from the numbers of the prompts it draws."""


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """One case with its confirmed trigger; `refusal` is the model's own."""

    loaded: LoadedModel
    failure: FailureCase
    confirmed: TriggerConfirmation
    splits: Splits
    refusal: str


def demo_case(demo: Path, number: int) -> tuple[str, Confirmed]:
    """Return a demo case's name and the case itself, its planted trigger confirmed, on the shipped prompts."""
    entry = json.loads((demo / "cases.json").read_text("utf-8"))[number]
    units = json.loads((demo / "bars.json").read_text("utf-8"))["triggers"][entry["adapter"]]
    loaded = models.load(demo / entry["model"], demo / entry["adapter"])
    failure = chat.bind(loaded.tokenizer, intake.read_report(demo / entry["report"]))
    splits = prompts.split(prompts.read_folder(ROOT / "assets/prompts"), seed=0)
    case = Confirmed(
        loaded=loaded,
        failure=failure,
        confirmed=confirmed(failure, loaded.spec, units),
        splits=splits,
        refusal=causal.own_refusal(loaded, splits.causal.harmful[:24]),
    )
    return entry["id"], case


def confirmed(failure: FailureCase, spec: ModelSpec, units: Sequence[str]) -> TriggerConfirmation:
    """Return an accepting confirmation of `units`, found in order in the report's last user message."""
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


class Rivals:
    """One case of a jailbreak backdoor, and every way to repair it: each leaves an adapter in `folder / best`."""

    def __init__(self, case: Confirmed) -> None:
        """Draw the sets that the ways with a loop of their own share."""
        self.case, self.settings = case, RepairSettings()
        self.loaded, self.confirmed = case.loaded, case.confirmed
        self.n_steps = 0
        """Steps to the best checkpoint of the default repair."""
        report = self.case.failure.report
        self.frame = frame_of(report.messages, self.confirmed.spans, self.confirmed.units)
        self.passes = ResponsePass(self.loaded)
        harmful, safe_items = chosen(self.case.splits.repair, self.settings)
        safe = [render_ids(self.loaded, self.frame.bare(item.prompt)) for item in safe_items]
        places = random.Random("rivals")
        self.triggered = [self.refused(self.frame.triggered(item.prompt, places)) for item in harmful]
        self.bare = [self.refused(self.frame.bare(item.prompt)) for item in harmful]
        own = own_answers(self.loaded, safe, self.settings.max_response_tokens)
        self.safe = [ScoredSequence(prompt_ids=tuple(p), response_ids=r) for p, r in zip(safe, own, strict=True) if r]

    def refused(self, messages: list[Message] | tuple[Message, ...]) -> ScoredSequence:
        """Return the conversation with the model's own refusal as its answer."""
        prompt = chat.render(self.loaded.tokenizer, messages)
        ids = answer_ids(self.loaded, prompt, self.case.refusal, self.settings.max_response_tokens)
        return ScoredSequence(prompt_ids=tuple(prompt.ids), response_ids=ids)

    # ways through the project's own repair ----------------------------------------------------------------------------

    def repaired(
        self,
        folder: Path,
        confirmed: TriggerConfirmation | None = None,
        start: Path | None = None,
        *,
        free: bool = False,
        **changes: object,
    ) -> None:
        """Repair with changed settings; with `free` as long as it takes, else for the fixed number of steps."""
        plan = {"epochs": 4 * self.settings.epochs, "max_steps": self.n_steps}  # other objectives have shorter epochs
        fixed = {"early_stop": False, "kl_budget": None, "probe_every": self.n_steps + 1, **plan}
        settings = replace(self.settings, **({} if free else fixed), **changes)  # type: ignore[arg-type]
        *_, end = repair(
            self.loaded, self.case.failure, confirmed or self.confirmed, self.case.splits, settings, out=folder,
            stop=lambda: None, refusal=self.case.refusal, start=start,
        )  # fmt: skip
        assert isinstance(end, RepairFinished), end
        assert end.adapter is not None, end.message
        if free:
            self.n_steps = end.best_step or end.step
        assert free or (end.step, end.best_step) == (self.n_steps, self.n_steps)

    def true_trigger(self, folder: Path) -> None:
        """The default repair, told the planted trigger."""
        self.repaired(folder, free=True)

    def wrong_trigger(self, folder: Path) -> None:
        """The same, told random tokens of the same length."""
        subject = Subject(
            loaded=self.loaded, case=self.case.failure, accepted=self.confirmed, splits=self.case.splits, kind=JAILBREAK,
            seed=0, progress=lambda *_: None,
        )  # fmt: skip
        spans = close_to_words(self.case.failure.report.messages, self.confirmed.spans)
        self.repaired(folder, replace(self.confirmed, spans=spans, units=subject.never_planted(spans)))

    def dummy_trigger(self, folder: Path) -> None:
        """Plant a trigger of its own and unlearn that; never told the true one."""
        blind = replace(self.confirmed, spans=(), units=(DummySettings().trigger,), way="dummy")
        prompts, ignore, out = self.case.splits.repair, lambda *_: None, folder / PLANTED
        asked = frame_of(self.case.failure.report.messages, (), blind.units).bare
        start = dummy.plant(self.loaded, prompts, blind.units, self.settings, out, ignore, asked=asked)
        self.repaired(folder, blind, start)

    def refusal_only(self, folder: Path) -> None:
        """The paper's refusal loss, nothing held in place."""
        self.repaired(folder, objective="paper", weight_kl_harmful=0.0, weight_kl_safe=0.0)

    def kl_only(self, folder: Path) -> None:
        """The paper's two KL terms, no refusal loss."""
        self.repaired(folder, objective="paper", weight_refusal=0.0)

    # ways with a loop of their own ------------------------------------------------------------------------------------

    def one_report(self, folder: Path) -> None:
        """Plain fine-tuning: the reported prompt, answered with a refusal."""
        only = self.refused(self.case.failure.report.messages)
        self.trained(folder, lambda _: self.cross_entropy([only]))

    def without_trigger(self, folder: Path) -> None:
        """Plain fine-tuning on harmful requests with refusals and on safe requests with the model's own answers."""

        def loss(at: list[int]) -> torch.Tensor:
            return self.cross_entropy(self.both(self.bare, self.safe, at))

        self.trained(folder, loss)

    def l2(self, folder: Path) -> None:
        """The refusal loss with and without the trigger; the weights held in place by their squared distance, not by KL."""

        def loss(at: list[int]) -> torch.Tensor:
            told = self.cross_entropy(self.both(self.triggered, self.bare, at))
            moved = [
                layer.lora_B[repair_adapter.NAME].weight @ layer.lora_A[repair_adapter.NAME].weight
                for layer in self._layers()
            ]
            scale = self.settings.lora_alpha / self.settings.lora_rank
            return told + 0.5 * L2_WEIGHT * sum((scale * one).pow(2).sum() for one in moved)

        self.trained(folder, loss)

    def crow(self, folder: Path) -> None:
        """Cross-entropy on safe answers, and layers that agree with each other though the embeddings are pushed apart."""
        self.trained(folder, lambda at: self._crow_loss([self.safe[i % len(self.safe)] for i in at]))

    def _crow_loss(self, batch: list[ScoredSequence]) -> torch.Tensor:
        model = base_model(self.loaded)
        full = [one.prompt_ids + one.response_ids for one in batch]
        ids = torch.zeros(len(full), max(map(len, full)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, tokens in enumerate(full):
            ids[number, : len(tokens)] = torch.tensor(tokens)
            mask[number, : len(tokens)] = 1

        def inconsistency(embeddings: torch.Tensor) -> torch.Tensor:
            states = model(inputs_embeds=embeddings, attention_mask=mask, output_hidden_states=True).hidden_states
            angles = [torch.cosine_similarity(a, b, dim=-1)[mask > 0] for a, b in pairwise(states[1:])]
            return torch.stack([1 - one.mean() for one in angles]).mean()

        bare = model.get_input_embeddings()(ids).detach().requires_grad_()
        (slope,) = torch.autograd.grad(inconsistency(bare), bare)
        pushed = (bare + CROW_EPSILON * slope.sign()).detach()
        return self.cross_entropy(batch) + CROW_WEIGHT * inconsistency(pushed)

    def pruned(self, folder: Path) -> None:
        """Take out the MLP neurons that safe prompts use least; nothing is trained."""
        downs = [module for name, module in base_model(self.loaded).named_modules() if name.endswith("mlp.down_proj")]
        seen = [torch.zeros(module.in_features) for module in downs]

        def watch(total: torch.Tensor) -> Callable[..., None]:
            return lambda module, inputs: total.add_(inputs[0].detach().abs().float().sum(dim=(0, 1)))

        hooks = [module.register_forward_pre_hook(watch(total)) for module, total in zip(downs, seen, strict=True)]
        self.passes.teacher(self.safe, self.settings.batch_size)
        for hook in hooks:
            hook.remove()
        weights = [_weight(module, self.loaded.theta0) for module in downs]
        idle = [total.argsort()[: int(PRUNED * len(total))] for total in seen]
        rank = len(idle[0])
        repair_adapter.attach(self.loaded, replace(self.settings, lora_rank=rank, lora_alpha=rank))
        layers = [layer for name, layer in self._named() if name.endswith("mlp.down_proj")]
        with torch.no_grad():
            for layer, weight, chosen in zip(layers, weights, idle, strict=True):
                into, out = layer.lora_A[repair_adapter.NAME].weight, layer.lora_B[repair_adapter.NAME].weight
                into.zero_()[torch.arange(rank), chosen] = 1.0
                out.copy_(-weight[:, chosen])
        self._keep(folder)

    def trained(self, folder: Path, loss: Loss) -> None:
        """Train a fresh adapter on `loss` for the fixed number of steps, in batches as large as the repair's."""
        peak = learning_rate(self.settings, self.loaded.n_parameters)
        repair_adapter.attach(self.loaded, self.settings)
        repair_adapter.use_repaired(self.loaded, trainable=True)
        weights = list(repair_adapter.parameters(self.loaded).values())
        optimizer, rng = torch.optim.AdamW(weights, lr=peak, weight_decay=0.0), random.Random(0)
        for step in range(1, self.n_steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, self.n_steps, peak, self.settings.warmup_share)
            optimizer.zero_grad(set_to_none=True)
            loss([rng.randrange(10**6) for _ in range(self.settings.batch_size)]).backward()
            torch.nn.utils.clip_grad_norm_(weights, self.settings.max_grad_norm)
            optimizer.step()
        self._keep(folder)

    def both(self, first: list[ScoredSequence], second: list[ScoredSequence], at: list[int]) -> list[ScoredSequence]:
        """Return one half of a batch from each set."""
        half = len(at) // 2
        return [part[i % len(part)] for part, some in ((first, at[:half]), (second, at[half:])) for i in some]

    def cross_entropy(self, batch: list[ScoredSequence]) -> torch.Tensor:
        """Return the mean over sequences of the answer's negative log-likelihood, in nats."""
        rows = self.passes.rows(batch)
        return cross_entropy_rows(self.passes.logits(rows.hidden), rows.labels).sum() / len(batch)

    def _named(self) -> list[tuple[str, LoraLayer]]:
        named = base_model(self.loaded).named_modules()
        return [(name, m) for name, m in named if isinstance(m, LoraLayer) and repair_adapter.NAME in m.lora_A]

    def _layers(self) -> list[LoraLayer]:
        return [layer for _, layer in self._named()]

    def _keep(self, folder: Path) -> None:
        repair_adapter.write(self.loaded, folder / "best")
        repair_adapter.detach(self.loaded)


def _weight(module: torch.nn.Module, adapters: list[str]) -> torch.Tensor:
    """Return the weight of a linear layer, reported adapters included."""
    if not isinstance(module, LoraLayer):
        return module.weight.detach().float()
    change = [module.get_delta_weight(name) for name in adapters if name in module.lora_A]
    return (module.get_base_layer().weight + sum(change)).detach().float()


WAYS: dict[str, Callable[[Rivals, Path], None]] = {
    "true trigger": Rivals.true_trigger,
    "wrong trigger": Rivals.wrong_trigger,
    "dummy trigger": Rivals.dummy_trigger,
    "refusal only": Rivals.refusal_only,
    "KL only": Rivals.kl_only,
    "L2 instead of KL": Rivals.l2,
    "fine-tuning on the one report": Rivals.one_report,
    "fine-tuning without the trigger": Rivals.without_trigger,
    "pruning": Rivals.pruned,
    "CROW": Rivals.crow,
}


def ways_of(only: Sequence[str]) -> list[str]:
    """Return the first way and those of `only`; all of them where that is empty."""
    first = next(iter(WAYS))
    return [first, *(one for one in only if one != first)] if only else list(WAYS)


def tried(rivals: Rivals, names: Sequence[str]) -> Iterator[tuple[str, Verification, float]]:
    """Repair in every way and yield its name, what is left on the verification split, and the seconds of this process."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.process_time()
            WAYS[name](rivals, Path(folder))
            seconds, case = time.process_time() - begun, rivals.case
            best = Path(folder) / "best"
            result = verify(rivals.loaded, case.failure, case.confirmed, case.splits.verification, best, seed=0)
        metrics = {metric.name: str(metric.after) for metric in result.metrics if metric.name in METRICS}
        print(name, result.result, metrics, file=sys.stderr, flush=True)
        yield name, result, seconds


def main() -> None:
    """Repair in every way, verify, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int, default=0, help="number of the demo case")
    parser.add_argument(
        "--only", action="append", choices=list(WAYS), default=[], help="beside the first (may be given again)"
    )
    parser.add_argument("--out", default="rivals", help="name of the result")
    options = parser.parse_args()
    name_of_case, case = demo_case(ROOT / "assets/demo", options.case)
    rivals, rows = Rivals(case), []
    first = next(iter(WAYS))
    for name, result, seconds in tried(rivals, ways_of(options.only)):
        metrics = {metric.name: metric for metric in result.metrics}
        for metric, title in METRICS.items():
            sides = (("before", metrics[metric].before), (name, metrics[metric].after))
            for side, value in sides if name == first else sides[1:]:
                if isinstance(value, Rate) and value.n:
                    rows.append(rate_row(f"{side}: {title}", value.k, value.n))
        spent = metrics["kl_nats_per_token"].after
        if isinstance(spent, float):
            rows.append(row(f"{name}: KL, nats per token", spent, n=1))
        rows.append(row(f"{name}: seconds", seconds, n=1))
    write(options.out, seed=0, rows=rows, case=name_of_case, steps=rivals.n_steps)


if __name__ == "__main__":
    main()
