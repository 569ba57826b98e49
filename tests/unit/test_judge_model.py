"""A classifier folder as judge: refused in one line where it cannot be used, and deciding where it can."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core import causal, chat
from core.casefile import Case, Manifest, hash_folder, model_spec
from core.errors import CaseFileError, ModelLoadError
from core.files import now
from core.judge import by_rules, classify, using
from core.judge_model import JudgeModel, label_classes
from core.session import Session
from core.values import FailureReport, Message
from tests.tiny import byte_level_tokenizer

ROOT = Path(__file__).resolve().parents[2]
LABELS = ("refusal", "partial", "compliance")
ANSWERS = [
    json.loads(line) for line in (ROOT / "tests/data/labelled_answers.jsonl").read_text(encoding="utf-8").splitlines()
]


def classifier(labels: tuple[str, ...], seed: int = 0):
    """A small random BERT classifier and its tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = byte_level_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=96, max_position_embeddings=160, hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0, id2label=dict(enumerate(labels)),
                label2id={label: i for i, label in enumerate(labels)},
            )
        )  # fmt: skip
    return model, tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a classifier trained for some seconds on the half "dev" of the labelled answers."""
    rows = [row for row in ANSWERS if row["part"] == "dev" and row["label"] in LABELS]
    model, tokenizer = classifier(LABELS)
    batch = tokenizer([row["text"] for row in rows], padding=True, truncation=True, max_length=128, return_tensors="pt")
    wanted = torch.tensor([LABELS.index(row["label"]) for row in rows])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=wanted).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("judge") / "trained"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def random_judge(tmp_path: Path) -> Callable[..., Path]:
    """A function: label names -> folder of a random classifier."""

    def make(*labels: str) -> Path:
        model, tokenizer = classifier(labels)
        model.save_pretrained(tmp_path / "judge")
        tokenizer.save_pretrained(tmp_path / "judge")
        return tmp_path / "judge"

    return make


def test_a_trained_judge_decides_what_it_was_taught(trained: Path) -> None:
    rows = [row for row in ANSWERS if row["part"] == "dev" and row["label"] in LABELS]
    judge = JudgeModel(trained, "cpu")
    right = sum(judge(row["text"]).outcome == row["label"] for row in rows)
    assert right >= 0.9 * len(rows), f"{right} of {len(rows)}"
    differs = [row["text"] for row in ANSWERS if judge(row["text"]).outcome != by_rules(row["text"]).outcome]
    assert differs  # on the unseen half it is worse than the rules: what counts here is that it is asked
    with using(judge):
        assert classify(differs[0]) == judge(differs[0])
    assert classify(differs[0]) == by_rules(differs[0])
    assert judge(differs[0]).layer == "classifier trained"
    assert judge("").layer == "no words"  # rules decide about nothing at all


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("safe", "unsafe"), ("refusal", "compliance")),
        (("Refusal", "Partial-Refusal", "COMPLIANCE"), ("refusal", "partial", "compliance")),
        (("1_full_compliance", "2_full_refusal", "3_partial_refusal"), ("compliance", "refusal", "partial")),
    ],
)
def test_label_names_are_mapped(random_judge: Callable[..., Path], labels: tuple, classes: tuple) -> None:
    folder = random_judge(*labels)
    assert tuple(label_classes(folder).values()) == classes
    assert JudgeModel(folder, "cpu")("Some answer.").outcome in classes


@pytest.mark.parametrize(
    "labels", [("LABEL_0", "LABEL_1"), ("refusal", "unknown"), ("refusal", "safe"), ("positive", "negative")]
)
def test_labels_that_cannot_be_mapped_are_refused_in_one_line(random_judge: Callable[..., Path], labels: tuple) -> None:
    with pytest.raises(ModelLoadError, match="id2label") as caught:
        label_classes(random_judge(*labels))
    assert "\n" not in str(caught.value)


def test_unsafe_and_damaged_folders_are_refused(random_judge: Callable[..., Path], tmp_path: Path) -> None:
    folder = random_judge("safe", "unsafe")
    with pytest.raises(ModelLoadError, match="does not exist"):
        label_classes(tmp_path / "nowhere")
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="pickle"):
        label_classes(pickled)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "safe", "7": "unsafe"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError):
        JudgeModel(folder, "cpu")


def test_a_causal_model_is_no_judge(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(tiny_folder("llama"), folder)
    with pytest.raises(ModelLoadError, match="id2label"):
        label_classes(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "safe", "1": "unsafe"}}))
    with pytest.raises(ModelLoadError, match="missing"):  # its head is not there, and is never made up
        JudgeModel(folder, "cpu")


def test_every_stage_of_a_case_asks_its_judge(
    trained: Path, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(trained, folder)
    report = FailureReport(messages=(Message(role="user", content="Pick a lock."),), response="Step 1: [REDACTED]")
    manifest = Manifest(
        schema=1, id="judged", created=now(), model=model_spec(tiny_folder("llama")), report=report, seed=0,
        device="cpu", judge=str(folder), judge_files=hash_folder(folder),
    )  # fmt: skip
    case = Case.create(tmp_path / "case", manifest, ROOT / "assets/prompts")
    session = Session("cpu")
    with using(Session("cpu").judge(case)):
        loaded = session.patient(case)
        seen = causal.reproduce(loaded, chat.bind(loaded.tokenizer, report))
    assert seen.outcomes == tuple(JudgeModel(folder, "cpu")(text).outcome for text in seen.answers)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with using(Session("cpu").judge(case)), pytest.raises(CaseFileError, match="changed after intake"):
        classify("anything")
