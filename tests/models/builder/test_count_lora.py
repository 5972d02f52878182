"""The count of LoRA parameters without weights equals that of the loaded model."""

from __future__ import annotations

import pytest
from family_checkpoints.text import decoder

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.builder.builder import count_lora, load_pretrained
from mllm.tiny.checkpoints import write_tiny

TEMPLATE = "{% for turn in messages %}{{ turn['role'] ~ turn['content'] ~ eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("vaultgemma", dict(type="causal-lm", chat_template=TEMPLATE)),
        ("gemma3n", dict(type="causal-lm", lora_target=r".*\.layers\.1\.mlp\..*_proj")),
        ("t5gemma", dict(type="seq2seq")),
        ("medgemma", dict(type="medgemma", lora_target="all", image_size=112, image_token_len=16)),
        ("medgemma", dict(type="image-text", lora_target="vision")),
        ("gemma3n-student", dict(type="gemma3n-student")),
    ],
)
def test_the_count_equals_the_parameters_of_the_loaded_model(tmp_path, family, options):
    args = ModelArgs(model_name_or_path=str(write_tiny(family, tmp_path / family)), lora_r=3, **options)
    model = load_pretrained(args, detect()).model
    assert count_lora(args) == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) > 0


@pytest.mark.parametrize("use_dora", [False, True])
def test_the_count_includes_the_transposed_layers_of_gpt2(tmp_path, use_dora):
    model, tokenizer = decoder("gpt2")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    args = ModelArgs("causal-lm", str(tmp_path), lora_r=3, use_dora=use_dora)
    parameters = load_pretrained(args, detect()).model.parameters()
    assert count_lora(args) == sum(parameter.numel() for parameter in parameters if parameter.requires_grad) > 0


@pytest.mark.parametrize(
    "options",
    [
        dict(type="medgemma", lora_r=None, adapter_path="adapter"),
        dict(type="shikra", lora_r=4),
        dict(type="medsiglip", lora_r=4, part="vision"),
    ],
)
def test_the_count_is_none_if_the_config_does_not_determine_it(options):
    assert count_lora(ModelArgs(model_name_or_path="nowhere", **options)) is None


def test_a_target_that_matches_nothing_is_refused(tmp_path):
    folder = str(write_tiny("vaultgemma", tmp_path / "model"))
    with pytest.raises(ConfigError, match="matches no module"):
        count_lora(ModelArgs("causal-lm", folder, lora_r=4, lora_target=r".*\.attention\.q"))
