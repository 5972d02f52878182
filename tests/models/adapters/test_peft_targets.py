"""Layers of a LoRA are those that its targets match, in architectures whose targets PEFT would convert."""

from __future__ import annotations

import pytest
from family_checkpoints.text import decoder
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from mllm.models.adapters.attach import attach_adapter
from mllm.models.adapters.peft_targets import changed_by_peft

DENSE = r"model\.layers\.0\.mlp\.(gate_proj|up_proj|down_proj)"


@pytest.mark.parametrize(("family", "changes"), [("glm4_moe", True), ("llama", False)])
def test_only_the_matched_layers_have_an_adapter(family: str, changes: bool) -> None:
    model, _ = decoder(family)
    adapted = attach_adapter(model, targets={}, lora_r=2, lora_target=DENSE)
    assert isinstance(adapted, PeftModel)
    names = {name for name, module in adapted.get_base_model().named_modules() if isinstance(module, LoraLayer)}
    assert names == {f"model.layers.0.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
    assert changed_by_peft(adapted.peft_config["default"], adapted) == changes
