"""Tests of merging shard by shard: the weights equal those of PEFT, and safetensors reads the files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from mllm.errors import ConfigError
from mllm.export.shards import main_dtype, write_shards
from mllm.export.tensor_names import check_names
from mllm.models.backbone.streamed import open_stored
from mllm.models.backbone.weight_files import weight_files
from mllm.tiny.checkpoints import write_tiny

CASES: dict[str, dict[str, Any]] = {
    "linear": dict(target_modules=["q_proj", "down_proj"]),
    "rslora": dict(target_modules=["q_proj", "down_proj"], use_rslora=True),
    "dora": dict(target_modules=["q_proj", "down_proj"], use_dora=True),
    "embedding and convolution": dict(target_modules=["embed_tokens", "patch_embedding", "v_proj"]),
    "ranks of their own": dict(target_modules=["q_proj"], rank_pattern={"layers.1.self_attn.q_proj": 3}),
}


def _sharded(tmp_path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a tiny MedGemma in several files."""
    whole = write_tiny("medgemma", tmp_path / "whole", vision={"image_size": 224})
    AutoModelForImageTextToText.from_pretrained(whole, dtype=dtype).save_pretrained(
        tmp_path / "base", max_shard_size="900KB"
    )
    return tmp_path / "base"


def _adapter(base: Path, folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **options),
    )
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def _written(base: Path, adapter: Path, folder: Path) -> list[str]:
    model = open_stored(AutoModelForImageTextToText, base, AutoConfig.from_pretrained(base), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, adapter)
    folder.mkdir()
    names = write_shards(adapted.get_base_model(), base, folder)
    model.config.save_pretrained(folder)
    return names


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_shards_equal_the_merge_of_peft_in_memory(case: str, tmp_path: Path) -> None:
    base = _sharded(tmp_path)
    adapter = _adapter(base, tmp_path / "adapter", **CASES[case])
    names = _written(base, adapter, tmp_path / "merged")
    assert len(names) > 2
    assert names == [file.name for file in weight_files(base)]
    model = AutoModelForImageTextToText.from_pretrained(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    actual = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-5, msg=name)
    changed = {name for name in actual if not torch.equal(actual[name], before[name])}
    assert changed
    assert all(any(target in name for target in [*CASES[case]["target_modules"], "lm_head"]) for name in changed)


def test_the_product_is_scaled_by_alpha_over_rank(tmp_path: Path) -> None:
    base = _sharded(tmp_path)
    adapter = _adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    _written(base, adapter, tmp_path / "merged")
    key = "language_model.model.layers.0.self_attn.q_proj.weight"
    module = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    lora = load_file(adapter / "adapter_model.safetensors")
    by_hand = 6 / 4 * lora[f"{module}.lora_B.weight"] @ lora[f"{module}.lora_A.weight"]
    tensors: list[dict[str, torch.Tensor]] = [{}, {}]
    for folder, actual in zip((base, tmp_path / "merged"), tensors, strict=True):
        for file in weight_files(folder):
            actual |= load_file(file)
    torch.testing.assert_close(tensors[1][key], tensors[0][key] + by_hand, rtol=0, atol=1e-6)


def test_half_precision_is_merged_in_fp32_and_rounded_once(tmp_path: Path) -> None:
    base = _sharded(tmp_path, torch.bfloat16)
    adapter = _adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    names = _written(base, adapter, tmp_path / "merged")
    assert main_dtype(tmp_path / "merged", names) == torch.bfloat16
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    for name, tensor in AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").state_dict().items():
        assert torch.equal(tensor, expected[name].bfloat16()), name


def test_the_index_has_the_file_of_each_tensor(tmp_path: Path) -> None:
    base = _sharded(tmp_path)
    names = _written(base, _adapter(base, tmp_path / "adapter", target_modules=["q_proj"]), tmp_path / "merged")
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    own = json.loads((base / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == own["weight_map"]
    assert index["metadata"]["total_size"] == own["metadata"]["total_size"]
    assert sorted(os.listdir(tmp_path / "merged")) == sorted([*names, "config.json", "model.safetensors.index.json"])


def test_a_part_of_a_checkpoint_has_its_own_names(tmp_path: Path) -> None:
    base = write_tiny("gemma3n", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["Gemma3nForConditionalGeneration"]}))
    model = open_stored(AutoModelForCausalLM, base, AutoConfig.from_pretrained(base), dtype=torch.float32)
    (tmp_path / "part").mkdir()
    write_shards(model, base, tmp_path / "part")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path / "part")
    assert check_names(tmp_path / "part") == len(load_file(base / "model.safetensors"))


def test_overflow_is_refused(tmp_path: Path) -> None:
    base = _sharded(tmp_path, torch.float16)
    model = open_stored(AutoModelForImageTextToText, base, AutoConfig.from_pretrained(base), dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.mul_(1e7)
    (tmp_path / "merged").mkdir()
    with pytest.raises(ConfigError, match="would contain NaN or infinity"):
        write_shards(adapted.get_base_model(), base, tmp_path / "merged")
