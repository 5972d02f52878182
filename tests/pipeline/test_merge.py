"""Tests of the command `merge`: the merged model, its report, and refusals."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_runs import server
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.export import shards
from mllm.export.facts import Facts, Split, read_facts, write_facts
from mllm.export.merge import memory_needed, merge, refuse_too_large
from mllm.export.settings import write_settings
from mllm.memory import peak_memory
from mllm.models.adapters.trained_file import write_trained
from mllm.models.builder.builder import load_pretrained
from mllm.pipeline.merge import main
from mllm.pipeline.predict import main as predict
from mllm.tiny.adapter import write_tiny_adapter
from mllm.tiny.checkpoints import write_tiny


def test_the_merged_model_gives_the_answers_of_the_adapter(
    generating_adapter: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = Path(shutil.copytree(generating_adapter, tmp_path / "adapter"))
    settings = dict(image_size=None, image_token_len=64, max_length=300, system="Be brief.", turn_end=None)
    write_settings(adapter, {"type": "medgemma", **settings})
    out = tmp_path / "deep" / "merged"
    assert main(["--adapter", str(adapter), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    report = json.loads((out / "export_report.json").read_text())
    assert report["max_abs_difference"] < 1e-4 < report["adapter_effect"]
    assert (report["method"], report["parity"]) == ("shard by shard", "checked")
    assert report["shards"] == [{"file": "model.safetensors", "bytes": (out / "model.safetensors").stat().st_size}]
    question = ["--image", str(pictures / "0.png"), "--question", "What is this?", "--max-new-tokens", "8"]
    predict(["--adapter", str(adapter), *question])
    answer = capsys.readouterr().out
    predict(["--model", str(out), *question])
    assert capsys.readouterr().out == answer
    assert answer.strip()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_checkpoint_keeps_its_dtype(
    generating_base: Path, generating_adapter: Path, tmp_path: Path, precision: str
) -> None:
    base = Path(shutil.copytree(generating_base, tmp_path / "base"))
    halves = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(halves, base / "model.safetensors", metadata={"format": "pt"})
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
    out = tmp_path / "merged"
    main(["--adapter", str(generating_adapter), "--base", str(base), "--out", str(out), "--precision", precision])
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    compared = json.loads((out / "export_report.json").read_text())["compared_in"]
    assert compared == {"fp32": "float32", "bf16": "bfloat16"}[precision]


def _report(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "export_report.json").read_text())
    assert isinstance(report, dict)
    return report


def test_both_merges_write_equal_files(generating_base: Path, generating_adapter: Path, tmp_path: Path) -> None:
    streamed, loaded = tmp_path / "streamed", tmp_path / "loaded"
    main(["--adapter", str(generating_adapter), "--out", str(streamed)])
    base = Path(shutil.copytree(generating_base, tmp_path / "base"))
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    main(["--adapter", str(generating_adapter), "--base", str(base), "--out", str(loaded)])
    assert (_report(streamed)["method"], _report(loaded)["method"]) == ("shard by shard", "in memory")
    assert _report(loaded)["in_memory_because"] == "the checkpoint has no safetensors files"
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (streamed, loaded))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)
    assert {"generation_config.json", "mllm.json", "README.md", "tokenizer.json"} <= set(os.listdir(streamed))
    # Values such as `max_abs_difference` differ; the contents of the two configs are equal.
    assert json.loads((streamed / "config.json").read_text()) == json.loads((loaded / "config.json").read_text())


def test_the_comparison_is_skipped_only_by_its_flag(generating_adapter: Path, tmp_path: Path) -> None:
    main(["--adapter", str(generating_adapter), "--out", str(tmp_path / "merged"), "--skip-parity"])
    report = _report(tmp_path / "merged")
    assert report["parity"].startswith("skipped by --skip-parity")
    assert "max_abs_difference" not in report


def test_shards_that_the_disk_changed_are_not_written_with_skip_parity_either(
    generating_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def damage(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        if size > 100_000:
            os.pwrite(descriptor, b"\x01", size - 1)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(ConfigError, match=r"model\.safetensors differs from what was written to it: check the disk"):
        main(["--adapter", str(generating_adapter), "--out", str(tmp_path / "merged"), "--skip-parity"])
    assert not (tmp_path / "merged").exists()


def test_a_wrong_merge_is_not_written(
    generating_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = shards._merged_weight

    def forget(layer: Any, entry: shards.Entry) -> torch.Tensor:
        folded = fold(layer, entry)
        return folded if "layers.1" in entry.name else shards.read_tensor(*entry.source)

    monkeypatch.setattr(shards, "_merged_weight", forget)
    with pytest.raises(ConfigError, match="the merged logits differ"):
        main(["--adapter", str(generating_adapter), "--out", str(tmp_path / "merged")])
    assert os.listdir(tmp_path) == []


def test_resized_images_survive(generating_base: Path, generating_adapter: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(generating_adapter, tmp_path / "adapter"))
    write_settings(adapter, {"type": "medgemma", "image_size": 112, "image_token_len": 32})
    main(["--adapter", str(adapter), "--out", str(tmp_path / "merged")])
    positions = load_file(tmp_path / "merged" / "model.safetensors")[
        "vision_tower.embeddings.position_embedding.weight"
    ]
    assert len(positions) == 8 * 8  # 112 pixels in patches of 14; the base had 16 x 16
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["mm_tokens_per_image"] == 32
    assert _report(tmp_path / "merged")["method"] == "shard by shard"


def test_several_adapters_become_one_model(generating_base: Path, generating_adapter: Path, tmp_path: Path) -> None:
    other = write_tiny_adapter(generating_base, tmp_path / "other", rank=2, alpha=5, seed=1, use_rslora=True)
    record = {"guarantee": "(3, 1e-05)-differentially private", "outside_the_guarantee": ["logs"], "warnings": []}
    write_facts(other, Facts(str(generating_base), data={"train": Split("ReportDataset", 40)}, privacy=record))
    out = tmp_path / "merged"
    options = [
        "--adapter",
        str(generating_adapter),
        "--adapter",
        str(other),
        "--weights",
        "0.7",
        "-0.3",
        "--out",
        str(out),
    ]
    assert main(options) == 0
    report = _report(out)
    assert (report["weights"], report["combination"], report["rank"]) == ([0.7, -0.3], "cat", 6)
    assert report["adapters"] == [str(generating_adapter), str(other)]
    assert report["parity"] == "checked"
    card = (out / "README.md").read_text()
    first, second = card.partition("## Adapter 1")[2].split("## Adapter 2")
    assert "No privacy guarantee is known" in first
    assert "* train: `ReportDataset`, 40 samples" in second and record["guarantee"] in second
    facts = read_facts(out)
    assert facts is not None and facts.privacy is None
    assert [part.privacy for part in facts.adapters] == [None, record]
    model = AutoModelForImageTextToText.from_pretrained(generating_base)
    key = "model.language_model.layers.0.mlp.up_proj"
    expected = model.get_submodule(key).weight.detach().clone()
    for folder, scale in ((generating_adapter, 0.7 * 8 / 4), (other, -0.3 * 5 / 2**0.5)):
        lora = load_file(folder / "adapter_model.safetensors")
        expected += (
            scale * lora[f"base_model.model.{key}.lora_B.weight"] @ lora[f"base_model.model.{key}.lora_A.weight"]
        )
    merged = AutoModelForImageTextToText.from_pretrained(out).get_submodule(key).weight
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5)


def test_adapters_that_cannot_be_combined(generating_base: Path, generating_adapter: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(generating_adapter, tmp_path / "other"))
    both = ["--adapter", str(generating_adapter), "--adapter", str(other), "--out", str(tmp_path / "merged")]
    write_settings(other, {"type": "medgemma", "image_token_len": 64})
    with pytest.raises(ConfigError, match=r"differ in image_token_len \(None and 64\)"):
        main(both)
    (other / "mllm.json").unlink()
    save_file({"heads.x": torch.ones(1)}, other / "heads.safetensors")
    with pytest.raises(ConfigError, match=r"contains heads\.safetensors"):
        main(both)
    with pytest.raises(ConfigError, match="--weights has 1 numbers"):
        main([*both, "--weights", "1"])
    assert os.listdir(tmp_path) == ["other"]


def test_a_trained_projector_is_written(tmp_path: Path) -> None:
    base = write_tiny("shikra", tmp_path / "base")
    adapter = write_tiny_adapter(base, tmp_path / "adapter", targets=["q_proj"])
    args = ModelArgs(type="shikra", model_name_or_path=str(base), adapter_path=str(adapter), lora_r=None)
    bundle = load_pretrained(args, detect())
    with torch.no_grad():
        for parameter in bundle.model.pretrained.model.multi_modal_projector.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    write_trained(bundle.model, adapter)
    write_settings(adapter, {"type": "shikra"})
    main(["--adapter", str(adapter), "--out", str(tmp_path / "merged")])
    assert _report(tmp_path / "merged")["method"] == "shard by shard"
    actual = load_file(tmp_path / "merged" / "model.safetensors")
    for name, parameter in bundle.model.trained_state().items():
        key = f"multi_modal_projector.{name.removeprefix('projector.')}"
        assert torch.equal(actual[key], parameter)


def merge_in_memory(adapter: str, out: str, connection: Connection) -> None:
    """Merge, and send the growth of the peak memory of this process in bytes."""
    before = peak_memory()
    merge(adapter, out)
    connection.send(peak_memory() - before)


def test_a_model_in_shards_needs_little_memory(tmp_path: Path) -> None:
    """Its 100 MB in bf16 would be 200 MB when loaded completely, in addition to the file and the merged tensors."""
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=13,
        num_attention_heads=8,
        vocab_size=2048,
        dtype=torch.bfloat16,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    base = tmp_path / "base"
    model.save_pretrained(base, max_shard_size="10MB")
    AutoTokenizer.from_pretrained(write_tiny("gemma3n", tmp_path / "tiny")).save_pretrained(base)
    lora = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    write_settings(tmp_path / "adapter", {"type": "causal-lm"})
    receiver, sender = multiprocessing.Pipe(duplex=False)
    arguments = (str(tmp_path / "adapter"), str(tmp_path / "merged"), sender)
    process = server().Process(target=merge_in_memory, args=arguments)
    process.start()
    sender.close()
    growth = receiver.recv()
    process.join()
    report = _report(tmp_path / "merged")
    assert report["method"] == "shard by shard"
    assert len(report["shards"]) > 8
    assert sum(shard["bytes"] for shard in report["shards"]) > 100e6
    assert growth < 140e6


def test_a_folder_that_is_not_empty_is_not_overwritten(generating_adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        main(["--adapter", str(generating_adapter), "--out", str(tmp_path)])
    assert os.listdir(tmp_path) == ["precious"]


def test_a_base_with_quantized_weights_only_is_refused(
    generating_base: Path, generating_adapter: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(generating_base, tmp_path / "base"))
    config = base / "config.json"
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    config.write_text(json.dumps(json.loads(config.read_text()) | quantized))
    with pytest.raises(ConfigError, match="only quantized weights.*--base"):
        main(["--adapter", str(generating_adapter), "--base", str(base), "--out", str(tmp_path / "merged")])
    assert os.listdir(tmp_path) == ["base"]


def test_weights_larger_than_the_memory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    assert memory_needed(tmp_path, itemsize=2, precision="fp32") == 2000
    assert memory_needed(tmp_path, itemsize=2, precision="bf16") == 1000
    refuse_too_large(2000, 2000, "fp32")
    with pytest.raises(ConfigError, match=r"fp32 needs 17\.2 GB .* has 12\.7 GB: use --precision bf16"):
        refuse_too_large(17_200_000_000, 12_700_000_000, "fp32")
