"""Adapter files: every layout is restored exactly, every defect gives one error message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small_gemma import LANGUAGE_LAYERS, attach, close, load, logits, trainable

from mllm.errors import ConfigError
from mllm.models.adapters.combine import stacked_as_one
from mllm.tiny.adapter import write_tiny_adapter
from mllm.tiny.checkpoints import write_tiny


def edited(folder: Path, target: Path, **values: object) -> Path:
    """Return a copy of an adapter with other values in its adapter_config.json."""
    target.mkdir()
    config = json.loads((folder / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**config, **values}))
    save_file(load_file(folder / "adapter_model.safetensors"), target / "adapter_model.safetensors")
    return target


class TestContinue:
    @pytest.mark.parametrize("layout", ["current", "4.52", "4.50"])
    @pytest.mark.parametrize("lora_r", [None, 4])
    def test_every_layout_restores_every_tensor(self, small_gemma, start_adapter, tmp_path, layout, lora_r):
        folder = write_tiny_adapter(small_gemma, tmp_path / "adapter", layout=layout)
        model = attach(load(small_gemma), adapter_path=str(folder), lora_r=lora_r, lora_dropout=0.1)
        expected = load_file(start_adapter / "adapter_model.safetensors")
        tensors, config = stacked_as_one(model)
        assert tensors.keys() == expected.keys()
        assert len(tensors) == 2 * (LANGUAGE_LAYERS + 2 * 3)  # the suffixes meet q, k and v of the vision tower
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
        assert len(trainable(model)) == len(expected)
        assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)
        assert close(logits(model), logits(PeftModel.from_pretrained(load(small_gemma), start_adapter)), 1e-6)

    def test_target_written_for_older_names(self, small_gemma, tmp_path):
        pattern = r".*vision_tower\.encoder\.layers\.\d+\.mlp\.fc1"
        folder = write_tiny_adapter(small_gemma, tmp_path / "new", targets=pattern, layout="4.50")
        old = edited(folder, tmp_path / "old", target_modules=r"vision_tower\.vision_model\.encoder\.layers.*fc1")
        model = attach(load(small_gemma), adapter_path=str(old), lora_r=None)
        assert len(trainable(model)) == 2 * 2

    @pytest.mark.parametrize("key", ["lora_alpha", "use_rslora", "use_dora"])
    def test_a_contradicting_config_is_refused(self, small_gemma, start_adapter, key):
        with pytest.raises(ConfigError, match=f"{key} = .* contradicts the adapter to be continued"):
            attach(
                load(small_gemma),
                adapter_path=str(start_adapter),
                lora_r=4,
                **{key: 16 if key == "lora_alpha" else True},
            )

    def test_dora_and_rslora_are_continued(self, small_gemma, tmp_path):
        folder = write_tiny_adapter(small_gemma, tmp_path / "adapter", use_dora=True, use_rslora=True)
        model = attach(load(small_gemma), adapter_path=str(folder), lora_r=None)
        assert close(logits(model), logits(PeftModel.from_pretrained(load(small_gemma), folder)), 1e-6)


class TestRefusedAdapters:
    def refuse(self, base: Path, path: Path | str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            attach(load(base), adapter_path=str(path), lora_r=None)

    def test_changes_nothing(self, small_gemma, tmp_path):
        get_peft_model(load(small_gemma), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
        self.refuse(small_gemma, tmp_path, "has no effect: all its B matrices are zero")

    def test_nan(self, small_gemma, start_adapter, tmp_path):
        folder = edited(start_adapter, tmp_path / "nan")
        tensors = load_file(folder / "adapter_model.safetensors")
        tensors[min(tensors)][0, 0] = torch.nan
        save_file(tensors, folder / "adapter_model.safetensors")
        self.refuse(small_gemma, folder, "contains NaN")

    @pytest.mark.parametrize("path", ["/nowhere/adapter", "ckpt/nothing-here", "two words/x", "a/b/c"])
    def test_missing(self, small_gemma, path):
        self.refuse(small_gemma, path, "is not a folder; download adapters with scripts/download_medgemma.sh")

    def test_not_on_the_hub(self, small_gemma):
        self.refuse(small_gemma, "no-such-owner-here/no-such-adapter", "no-such-owner-here/no-such-adapter.*hub")

    def test_not_an_adapter(self, small_gemma):
        self.refuse(small_gemma, small_gemma, "contains no adapter_config.json")

    def test_without_weights(self, small_gemma, start_adapter, tmp_path):
        folder = edited(start_adapter, tmp_path / "adapter")
        (folder / "adapter_model.safetensors").unlink()
        self.refuse(small_gemma, folder, "its weights are missing")

    def test_truncated_file(self, small_gemma, start_adapter, tmp_path):
        folder = edited(start_adapter, tmp_path / "adapter")
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        self.refuse(small_gemma, folder, "cannot be read")

    def test_an_adapter_of_another_method_is_refused(self, small_gemma, start_adapter, tmp_path):
        folder = edited(start_adapter, tmp_path / "adapter", peft_type="IA3")
        self.refuse(small_gemma, folder, "describes no LoRA adapter|cannot be read")

    def test_an_adapter_of_another_architecture_is_refused(self, small_gemma, tiny_qwen2_vl, tmp_path):
        folder = write_tiny_adapter(tiny_qwen2_vl, tmp_path / "adapter", targets=["fc1", "q_proj"])
        self.refuse(small_gemma, folder, "does not fit this model: it adapts model.visual")

    def test_an_adapter_with_other_shapes_is_refused(self, start_adapter, tmp_path):
        wide = write_tiny("medgemma", tmp_path / "wide", text={"intermediate_size": 320}, vision={"image_size": 224})
        self.refuse(
            wide, start_adapter, r"does not fit this model: .* has shape \(4, 256\), the model needs \(4, 320\)"
        )

    def test_an_adapter_without_a_tensor_is_refused(self, small_gemma, start_adapter, tmp_path):
        folder = edited(start_adapter, tmp_path / "adapter")
        tensors = load_file(folder / "adapter_model.safetensors")
        tensors.pop(next(key for key in tensors if "lora_A" in key))
        save_file(tensors, folder / "adapter_model.safetensors")
        self.refuse(small_gemma, folder, "is inconsistent: .* is missing")

    def test_fully_trained_modules_are_refused(self, small_gemma, start_adapter, tmp_path):
        folder = edited(start_adapter, tmp_path / "adapter", modules_to_save=["lm_head", "embed_tokens"])
        self.refuse(small_gemma, folder, r"more than LoRA \(lm_head, embed_tokens\)")

    def test_initializations_that_change_the_base_are_refused(self, small_gemma, start_adapter, tmp_path):
        self.refuse(
            small_gemma,
            edited(start_adapter, tmp_path / "adapter", init_lora_weights="pissa"),
            "was initialized by pissa",
        )

    def test_alpha_pattern_that_matches_nothing(self, small_gemma, start_adapter, tmp_path):
        folder = edited(start_adapter, tmp_path / "adapter", alpha_pattern={"no_such_proj": 3})
        self.refuse(small_gemma, folder, "alpha_pattern 'no_such_proj' matches none")
