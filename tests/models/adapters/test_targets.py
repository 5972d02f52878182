"""Layers matched by each target in three families, and refused targets."""

from __future__ import annotations

import re

import pytest
from small_gemma import LANGUAGE_LAYERS, TOWERS, VISION_LAYERS, attach, load, trainable
from torch import nn
from transformers import (
    LlavaForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)

from mllm.errors import ConfigError
from mllm.models.adapters.attach import attach_adapter
from mllm.models.adapters.targets import derived_targets, matching, pattern_of
from mllm.models.medgemma.family import LORA_TARGETS


class TestTargets:
    @pytest.mark.parametrize(
        ("lora_target", "language", "vision"),
        [
            ("language", LANGUAGE_LAYERS, 0),
            ("vision", 0, VISION_LAYERS),
            ("all", LANGUAGE_LAYERS, VISION_LAYERS),
            (r".*language_model\.layers\.[01]\.self_attn\.[qv]_proj", 4, 0),
        ],
    )
    def test_counts(self, small_gemma, lora_target, language, vision):
        model = attach(load(small_gemma), lora_r=2, lora_target=lora_target)
        names = trainable(model)
        assert len(names) == 2 * (language + vision)
        assert sum("vision_tower" in name for name in names) == 2 * vision
        assert all(re.search(r"lora_[AB]\.default", name) for name in names)

    def test_the_patterns_of_gemma_equal_the_derived_ones(self, small_gemma):
        model = load(small_gemma)
        derived = derived_targets(model, TOWERS)
        for tower, pattern in LORA_TARGETS.items():
            assert matching(derived[tower], model) == matching(pattern, model)

    def test_llava(self, tiny_llava):
        model = LlavaForConditionalGeneration.from_pretrained(tiny_llava)
        targets = derived_targets(model, TOWERS)
        linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        left_out = linears - matching(targets["language"], model) - matching(targets["vision"], model)
        assert left_out == {"lm_head", "model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"}

    def test_projector_inside_the_vision_tower(self, tiny_qwen2_vl):
        model = Qwen2VLForConditionalGeneration.from_pretrained(tiny_qwen2_vl)
        towers = {"vision": "model.visual", "projector": "model.visual.merger", "language": "model.language_model"}
        targets = derived_targets(model, towers)
        vision = matching(targets["vision"], model)
        assert not any("merger" in name for name in vision)
        assert {name.split("blocks.0.")[1] for name in vision if "blocks.0." in name} == {
            "attn.qkv",
            "attn.proj",
            "mlp.fc1",
            "mlp.fc2",
        }
        adapted = attach_adapter(model, targets=targets, lora_r=2, lora_target="all")
        assert len(trainable(adapted)) == 2 * (
            len(vision) + len(matching(targets["language"], adapted.base_model.model))
        )

    def test_a_pattern_lists_modules_if_only_some_are_selected(self, small_gemma):
        model = load(small_gemma)
        some = {f"model.language_model.layers.{index}.mlp.up_proj" for index in (0, 2)}
        assert matching(pattern_of(some, model), model) == some

    @pytest.mark.parametrize(
        ("lora_target", "message"),
        [
            ("langauge", "did you mean 'language'?"),
            (r"layers\.\d+\.self_attn\.q_proj", "matches no module; it must match full names such as"),
            (".*(q_proj", "is not a valid regular expression"),
            (r".*layers\.0\.self_attn", "a Gemma3Attention, which cannot have an adapter"),
            (r"lm_head", "shares its weight with the token embedding"),
        ],
    )
    def test_refused(self, small_gemma, lora_target, message):
        with pytest.raises(ConfigError, match=re.escape(message)):
            attach(load(small_gemma), lora_target=lora_target)
