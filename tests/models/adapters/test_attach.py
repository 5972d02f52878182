"""Attachment, continuation, stacking, combination, merging and counts of adapters, against PEFT and full logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from small_gemma import LANGUAGE_LAYERS, TOWERS, VISION_LAYERS, attach, close, inputs, load, logits, trainable
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    Gemma3ForConditionalGeneration,
)

from mllm.errors import ConfigError
from mllm.models.adapters.attach import attach_adapter
from mllm.models.adapters.combine import save_adapter
from mllm.models.adapters.merge import merged_weights
from mllm.models.adapters.targets import derived_targets
from mllm.models.adapters.trainable import count_trainable, format_counts
from mllm.models.backbone.half_safe import keep_residual_in_fp32
from mllm.models.language_model import LanguageModel
from mllm.tiny.adapter import write_tiny_adapter


def fill(model: PeftModel, adapter: str = "default") -> PeftModel:
    """Set the B matrices of an adapter to random values, as after training."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"lora_B.{adapter}" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


class TestFresh:
    def test_a_fresh_adapter_does_not_change_the_outputs(self, small_gemma):
        model = load(small_gemma)
        before = logits(model)
        assert close(before, logits(attach(model, lora_r=4, lora_target="all")), 1e-6)

    def test_fresh_dora_does_not_change_the_outputs_of_a_half_precision_base(self, small_gemma):
        model = load(small_gemma, dtype=torch.bfloat16)
        expected = logits(load(small_gemma, dtype=torch.bfloat16).float())
        adapted = attach(model, lora_r=4, lora_target="all", use_dora=True)
        assert close(expected, logits(adapted.float()), 1e-4)

    def test_fp32_over_bf16_and_alpha_is_the_rank(self, small_gemma):
        model = attach(load(small_gemma, dtype=torch.bfloat16), lora_r=3)
        assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
        assert model.get_base_model().model.language_model.norm.weight.dtype == torch.bfloat16
        assert (model.peft_config["default"].lora_alpha, model.peft_config["default"].r) == (3, 3)

    def test_without_rank_the_model_is_unchanged(self, small_gemma):
        model = load(small_gemma)
        assert attach(model, lora_r=None) is model


class TestStack:
    def test_only_the_new_adapter_trains(self, small_gemma, start_adapter):
        model = attach(load(small_gemma), adapter_path=str(start_adapter), lora_r=2)
        assert close(logits(model), logits(PeftModel.from_pretrained(load(small_gemma), start_adapter)), 1e-6)
        assert all(".default." in name for name in trainable(model))
        assert len(trainable(model)) == 2 * LANGUAGE_LAYERS
        model.train()
        model(**inputs(model)).logits.square().mean().backward()
        graded = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert graded == trainable(model)

    @pytest.mark.parametrize(
        ("lora_target", "rslora"),
        [
            ("language", (False, False)),
            ("language", (True, False)),
            ("vision", (False, True)),
            ("all", (True, True)),
        ],
    )
    def test_a_continued_pair_is_saved_as_one_adapter(self, small_gemma, tmp_path, rslora, lora_target):
        folder = write_tiny_adapter(small_gemma, tmp_path / "start", rank=4, alpha=10, use_rslora=rslora[0])
        options = dict(lora_r=2, lora_alpha=5, lora_target=lora_target, use_rslora=rslora[1])
        model = fill(attach(load(small_gemma), adapter_path=str(folder), **options))
        save_adapter(model, tmp_path / "out", "someone/base")
        again = PeftModel.from_pretrained(load(small_gemma), tmp_path / "out")
        difference = logits(model) - logits(again)
        assert float(difference.abs().max()) < 2e-5
        assert not close(logits(model), logits(PeftModel.from_pretrained(load(small_gemma), folder)), 1e-3)
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (6, 6, False)
        assert config["base_model_name_or_path"] == "someone/base"

    def test_dora_is_refused(self, small_gemma, start_adapter, tmp_path):
        with pytest.raises(ConfigError, match="DoRA adapters cannot be combined"):
            attach(load(small_gemma), adapter_path=str(start_adapter), lora_r=2, use_dora=True)
        folder = write_tiny_adapter(small_gemma, tmp_path / "dora", use_dora=True)
        with pytest.raises(ConfigError, match="DoRA adapters cannot be combined"):
            attach(load(small_gemma), adapter_path=str(folder), lora_r=2)


class TestMerge:
    @pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"use_dora": True}])
    def test_parity(self, small_gemma, kind):
        model = fill(attach(load(small_gemma), lora_r=4, lora_alpha=8, lora_target="all", **kind))
        before = logits(model)
        merged = merged_weights(model)
        assert isinstance(merged, Gemma3ForConditionalGeneration)
        assert close(before, logits(merged))
        assert not close(before, logits(load(small_gemma)), 1e-2)
        assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
        assert list(merged.state_dict()) == list(load(small_gemma).state_dict())

    def test_stack_parity(self, small_gemma, start_adapter):
        model = fill(attach(load(small_gemma), adapter_path=str(start_adapter), lora_r=2))
        before = logits(model)
        assert close(before, logits(merged_weights(model)))

    def test_a_merged_model_is_equal_after_saving(self, small_gemma, tmp_path):
        model = fill(attach(load(small_gemma), lora_r=4))
        before = logits(model)
        merged_weights(model).save_pretrained(tmp_path)
        assert close(before, logits(load(tmp_path)))

    @pytest.mark.parametrize("lora_r", [None, 4])
    def test_merge_first(self, small_gemma, start_adapter, lora_r):
        model = attach(load(small_gemma), adapter_path=str(start_adapter), merge_lora=True, lora_r=lora_r)
        assert close(logits(model), logits(PeftModel.from_pretrained(load(small_gemma), start_adapter)))
        assert len(trainable(model)) == (0 if lora_r is None else 2 * LANGUAGE_LAYERS)
        if lora_r is not None:
            assert list(model.peft_config) == ["default"]

    @pytest.mark.parametrize("bits", [4, 8])
    def test_quantized_is_refused(self, small_gemma, start_adapter, bits):
        with pytest.raises(ConfigError, match="merged into full-precision weights"):
            attach(quantized(small_gemma, bits), adapter_path=str(start_adapter), merge_lora=True)

    def test_fp16_storage_is_refused(self, small_gemma):
        model = attach(load(small_gemma, dtype=torch.float16), lora_r=2)
        keep_residual_in_fp32(model)
        with pytest.raises(ConfigError, match="merged into full-precision weights"):
            merged_weights(model)


def quantized(folder: Path, bits: int) -> nn.Module:
    kind = {
        4: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        8: BitsAndBytesConfig(load_in_8bit=True),
    }[bits]
    return load(folder, quantization_config=kind, device_map={"": "cpu"}, dtype=torch.float32)


class TestTraining:
    @pytest.mark.parametrize(
        "options",
        [{}, {"use_dora": True}, {"use_rslora": True}, {"bits": 4}, {"bits": 8}, {"bits": 4, "use_dora": True}],
        ids=lambda options: "-".join(map(str, options)) or "lora",
    )
    def test_loss_falls_and_the_saved_adapter_is_equal(self, small_gemma, tmp_path, options):
        bits = options.pop("bits", None) if (options := dict(options)) else None
        fresh = load(small_gemma) if bits is None else quantized(small_gemma, bits)
        model = attach(fresh, lora_r=8, lora_alpha=16, **options)
        batch = inputs(model)
        labels = batch["input_ids"].masked_fill(batch["token_type_ids"] == 1, -100)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
        losses = []
        model.train()
        for _ in range(6):
            loss = model(**batch, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.9 * losses[0], losses
        save_adapter(model, tmp_path, str(small_gemma))
        again = PeftModel.from_pretrained(load(small_gemma) if bits is None else quantized(small_gemma, bits), tmp_path)
        assert close(logits(model), logits(again), 1e-5 if bits is None else 1e-2)


class TestReport:
    def test_counts(self, small_gemma):
        model = LanguageModel(attach(load(small_gemma), lora_r=2, lora_target="all"), TOWERS)
        report = {count.tower: count for count in count_trainable(model)}
        plain = load(small_gemma)
        assert sum(count.total - count.parameters for count in report.values()) == plain.num_parameters()
        assert (report["language"].tensors, report["vision"].tensors) == (2 * LANGUAGE_LAYERS, 2 * VISION_LAYERS)
        assert report["vision"].parameters == 2 * 2 * (4 * (64 + 64) + 2 * (64 + 128))
        assert report["projector"].parameters == 0
        assert report["projector"].total == sum(p.numel() for p in plain.model.multi_modal_projector.parameters())
        table = format_counts(count_trainable(model))
        assert table.splitlines()[-1].split()[0] == "all"
        assert f"{report['vision'].parameters:,}" in table

    def test_packed_weights_are_counted_unpacked(self, small_gemma):
        packed = count_trainable(LanguageModel(quantized(small_gemma, 4), TOWERS))
        plain = count_trainable(LanguageModel(load(small_gemma), TOWERS))
        assert {count.tower: count.total for count in packed} == {count.tower: count.total for count in plain}


def test_adapters_of_other_families_are_loaded_by_peft(tiny_llava, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(tiny_llava)
    adapted = fill(attach_adapter(model, targets=derived_targets(model, TOWERS), lora_r=2))
    ids = {"input_ids": torch.arange(20, 40)[None]}
    save_adapter(adapted, tmp_path, str(tiny_llava))
    again = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(tiny_llava), tmp_path)
    with torch.no_grad():
        assert close(adapted(**ids).logits, again(**ids).logits, 1e-5)
