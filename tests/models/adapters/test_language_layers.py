"""Linear layers of attention and MLP that 'language' adapts in many architectures, built on `meta` without weights."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    Gemma4Config,
)

from mllm.errors import ConfigError
from mllm.models.adapters.targets import matching, resolve_target
from mllm.models.auto.towers import find_targets, find_towers
from mllm.models.text.towers import decoder_targets, encoder_decoder_targets, encoder_decoder_towers


def skeleton(auto, model_type, **options):
    with torch.device("meta"):
        return auto.from_config(CONFIG_MAPPING[model_type](**options))


def counts(names):
    actual: dict[str, int] = {}
    for name in names:
        last = name.rpartition(".")[2]
        actual[last] = actual.get(last, 0) + 1
    return actual


@pytest.mark.parametrize(
    ("model_type", "options", "expected"),
    [
        (
            "gpt_neox",
            {"num_hidden_layers": 3},
            {"query_key_value": 3, "dense": 3, "dense_h_to_4h": 3, "dense_4h_to_h": 3},
        ),
        (
            "falcon",
            {"num_hidden_layers": 2},
            {"query_key_value": 2, "dense": 2, "dense_h_to_4h": 2, "dense_4h_to_h": 2},
        ),
        ("bloom", {"n_layer": 2}, {"query_key_value": 2, "dense": 2, "dense_h_to_4h": 2, "dense_4h_to_h": 2}),
        (
            "opt",
            {"num_hidden_layers": 2},
            {"q_proj": 2, "k_proj": 2, "v_proj": 2, "out_proj": 2, "fc1": 2, "fc2": 2},
        ),
        (
            "lfm2",
            {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
            {"q_proj": 1, "k_proj": 1, "v_proj": 1, "out_proj": 2, "in_proj": 1, "w1": 2, "w2": 2, "w3": 2},
        ),
        (
            "qwen3_next",
            {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "num_experts": 4},
            {"in_proj_qkvz": 1, "in_proj_ba": 1, "out_proj": 1, "q_proj": 1, "k_proj": 1, "v_proj": 1, "o_proj": 1}
            | {"gate_proj": 2, "up_proj": 2, "down_proj": 2, "shared_expert_gate": 2},
        ),
        ("phimoe", {"num_hidden_layers": 2}, {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2}),
        ("gpt2", {"n_layer": 2}, {"c_attn": 2, "c_proj": 4, "c_fc": 2}),
        ("openai-gpt", {"n_layer": 2}, {"c_attn": 2, "c_proj": 4, "c_fc": 2}),
        # Its kernel reads the weight of out_proj itself.
        ("mamba2", {"num_hidden_layers": 2}, {"in_proj": 2}),
        # Without an encoder no gradient reaches the attention to it.
        (
            "bart",
            {"decoder_layers": 2},
            {"q_proj": 2, "k_proj": 2, "v_proj": 2, "out_proj": 2, "fc1": 2, "fc2": 2},
        ),
        # No gradient reaches its indexer, which chooses the tokens to read.
        (
            "deepseek_v32",
            {"num_hidden_layers": 1, "first_k_dense_replace": 1},
            {"q_a_proj": 1, "q_b_proj": 1, "kv_a_proj_with_mqa": 1, "kv_b_proj": 1, "o_proj": 1}
            | {"gate_proj": 1, "up_proj": 1, "down_proj": 1},
        ),
        # Its attention and MLP have one weight in all layers, and its mixer reads the other weights itself.
        (
            "zamba",
            {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
            {"in_proj": 3, "linear": 2},
        ),
        # Its attention is a part of a module that is named after its norms.
        (
            "dbrx",
            {"n_layers": 2, "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4}},
            {"Wqkv": 2, "out_proj": 2},
        ),
        # A LoRA has no groups, which o_a_proj has.
        (
            "deepseek_v4",
            {"num_hidden_layers": 1, "layer_types": ["sliding_attention"], "mlp_layer_types": ["moe"]},
            {"q_a_proj": 1, "q_b_proj": 1, "kv_proj": 1, "o_b_proj": 1}
            | {"gate_proj": 1, "up_proj": 1, "down_proj": 1},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_decoders_adapt_all_of_attention_and_mlp(model_type, options, expected):
    model = skeleton(AutoModelForCausalLM, model_type, **options)
    assert counts(matching(decoder_targets(model)["language"], model)) == expected


@pytest.mark.parametrize(
    ("model_type", "layers"),
    [
        ("modernbert-decoder", r"model\.layers\.\d+\.(attn|mlp)\.\w+"),
        ("llama4_text", r"model\.layers\.\d+\.(?!.*router).+"),
    ],
)
def test_decoders_that_transformers_finds_under_no_name(model_type, layers):
    options = {"num_hidden_layers": 2} | ({"num_local_experts": 2} if model_type == "llama4_text" else {})
    model = skeleton(AutoModelForCausalLM, model_type, **options)
    names = matching(decoder_targets(model)["language"], model)
    assert names == {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and re.fullmatch(layers, name)
    }


@pytest.mark.parametrize("model_type", ["gemma3n_text", "gemma3_text", "llama", "vaultgemma"])
def test_layers_of_families_with_one_kind_of_attention_are_named_as_ever(model_type):
    unshared = {"num_kv_shared_layers": 0} if model_type == "gemma3n_text" else {}
    model = skeleton(AutoModelForCausalLM, model_type, num_hidden_layers=5, **unshared)
    expected = matching(r"model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj", model)
    assert matching(decoder_targets(model)["language"], model) == expected


def test_t5_adapts_all_linear_layers_of_both_halves():
    model = skeleton(AutoModelForSeq2SeqLM, "t5", num_layers=2)
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert matching(encoder_decoder_targets(model)["language"], model) == linears - {"lm_head"}


def test_t5gemma2_has_its_vision_tower_in_the_encoder_and_not_in_language():
    model = skeleton(AutoModelForSeq2SeqLM, "t5gemma2")
    targets = encoder_decoder_targets(model)
    assert encoder_decoder_towers(model) == {
        "projector": "model.encoder.multi_modal_projector",
        "vision": "model.encoder.vision_tower",
        "encoder": "model.encoder",
        "language": "model.decoder",
    }
    language, vision = (matching(targets[tower], model) for tower in ("language", "vision"))
    halves = r"model\.(encoder\.text_model|decoder)\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
    assert language == matching(halves, model)
    assert vision and all(name.startswith("model.encoder.vision_tower.encoder.layers.") for name in vision)


def test_gemma4_without_vision_is_pointed_to_the_type_for_text():
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(Gemma4Config(text_config={"num_hidden_layers": 1}))
    with pytest.raises(ConfigError, match="has no vision tower .* use type='causal-lm'"):
        find_towers(model)


def test_gemma4_unified_projects_patches_without_a_vision_tower():
    model = skeleton(
        AutoModelForImageTextToText, "gemma4_unified", text_config={"num_hidden_layers": 6}, vision_config={}
    )
    assert find_towers(model) == {"projector": "model.embed_vision", "language": "model.language_model"}
    targets = find_targets(model)
    assert set(targets) == {"language"}
    assert not [name for name in matching(targets["language"], model) if "embed_vision" in name]
    with pytest.raises(ConfigError, match="lora_target = 'vision' matches no layer"):
        resolve_target(model, "vision", targets)


@pytest.mark.parametrize(("model_type", "part"), [("fuyu", "vision"), ("idefics", "language")])
def test_architectures_whose_parts_cannot_be_found_are_refused(model_type, part):
    model = skeleton(AutoModelForImageTextToText, model_type)
    with pytest.raises(ConfigError, match=f"the {part} model of .* cannot be found among its parts .*; choose a check"):
        find_towers(model)


def test_projections_of_led_for_global_attention_have_no_adapter():
    model = skeleton(AutoModelForSeq2SeqLM, "led", encoder_layers=1, decoder_layers=1)
    names = matching(encoder_decoder_targets(model)["language"], model)
    assert any(name.endswith(".longformer_self_attn.query") for name in names)
    assert not [name for name in names if name.endswith("_global")]


def test_log_names_the_kinds_of_layers_with_and_without_an_adapter(caplog):
    model = skeleton(AutoModelForCausalLM, "phimoe", num_hidden_layers=2)
    with caplog.at_level(logging.INFO):
        resolve_target(model, "language", decoder_targets(model))
    assert caplog.messages == [
        "adapter in 8 language layers: q_proj, k_proj, v_proj, o_proj (2 each)",
        "without an adapter: router, fused experts (2 each), lm_head (1)",
    ]
