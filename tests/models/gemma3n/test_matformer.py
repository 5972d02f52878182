"""Tests of the layers and neurons of a slice: published presets, custom slices, and refusals."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import Gemma3nConfig, Gemma3nForCausalLM, Gemma3nTextConfig
from transformers.initialization import no_init_weights

from mllm.errors import ConfigError
from mllm.models.gemma3n.matformer import PRESETS, Slice, check_sharing, custom_slice, preset_slice, sliced_config

E4B = Gemma3nTextConfig()
"""transformers' defaults are E4B's."""
PUBLISHED = {
    "E4B": 3.98,
    "E2B": 1.91,
    "E1.96B": 1.96,
    "E2.49B": 2.49,
    "E2.54B": 2.54,
    "E2.69B": 2.69,
    "E2.73B": 2.73,
    "E2.98B": 2.98,
    "E3.18B": 3.18,
    "E3.24B": 3.24,
    "E3.39B": 3.39,
    "E3.49B": 3.49,
    "E3.59B": 3.59,
    "E3.79B": 3.79,
}
"""Billions of effective parameters: of the language model, without the embeddings."""


def effective(config: Gemma3nTextConfig) -> float:
    """Return billions of parameters, counted as published: with the unused keys and values of shared layers."""
    with torch.device("meta"), no_init_weights():
        model = Gemma3nForCausalLM(config)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters() if "embed_tokens" not in name}
    counts.pop("lm_head.weight", None)
    unused = 2 * config.hidden_size * config.num_key_value_heads * config.head_dim * config.num_kv_shared_layers
    return (sum(counts.values()) + unused) / 1e9


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_as_large_as_published(name):
    """One layer of the other width would change the count by 0.05 B."""
    values = sliced_config(E4B.to_dict(), E4B, preset_slice(name, E4B))
    assert effective(Gemma3nTextConfig(**values)) == pytest.approx(PUBLISHED[name], abs=0.025)


def test_the_official_e2b():
    choice = preset_slice("e2b", E4B)
    assert choice == Slice((*range(20), *range(25, 35)), (8192,) * 30)
    config = Gemma3nConfig(text_config=E4B)
    text = sliced_config(config.to_dict(), config, choice)["text_config"]
    assert text["num_kv_shared_layers"] == 10
    assert text["layer_types"] == (["sliding_attention"] * 4 + ["full_attention"]) * 6
    assert text["activation_sparsity_pattern"] == [0.95] * 10 + [0.0] * 20
    assert text["hidden_size"] == 2048


def test_wide_layers_are_counted_after_dropping():
    choice = preset_slice("E1.96B", E4B)
    assert choice.widths == (8192,) * 4 + (16384,) + (8192,) * 25
    choice = preset_slice("E2.69B", E4B)
    assert [place for place, width in enumerate(choice.widths) if width == 16384] == [4, 9, 14, *range(19, 25)]


def test_presets_are_for_e4b_only():
    with pytest.raises(ConfigError, match=r"unknown MatFormer preset 'E2\.69': did you mean 'E2\.69B'"):
        preset_slice("E2.69", E4B)
    e2b = Gemma3nTextConfig(num_hidden_layers=30, intermediate_size=8192, num_kv_shared_layers=10)
    with pytest.raises(
        ConfigError, match=r"slice of Gemma 3n E4B \(35 layers of one width\).* 30 layers of 8,192 neur"
    ):
        preset_slice("E2.49B", e2b)
    cut = Gemma3nTextConfig(**sliced_config(E4B.to_dict(), E4B, preset_slice("E2.98B", E4B)))
    with pytest.raises(ConfigError, match="has 35 layers of 8,192 and 16,384 neurons"):
        preset_slice("E2.49B", cut)


def test_custom_slices():
    choice = custom_slice(E4B, [10000], [3, 20, 21])
    assert choice.layers == tuple(layer for layer in range(35) if layer not in (3, 20, 21))
    assert choice.widths == (10000,) * 32
    assert custom_slice(E4B, [], [3]).widths == (16384,) * 34
    assert custom_slice(E4B, [*range(8192, 8227)]).widths == tuple(range(8192, 8227))


@pytest.mark.parametrize(
    ("widths", "dropped", "sentence"),
    [
        ([], [35], "--drop-layers names layer 35, but this checkpoint has layers 0 to 34"),
        ([], range(35), "names every layer"),
        ([8192] * 35, [20], "--ffn-widths has 35 widths for 34 layers"),
        ([16385], [], "layer 0 has 16,384 neurons, but --ffn-widths requests 16,385"),
        ([*[8192] * 9, 0, *[8192] * 24], [2], "layer 10 has 16,384 neurons, but --ffn-widths requests 0"),
    ],
)
def test_impossible_slices_are_refused(widths, dropped, sentence):
    with pytest.raises(ConfigError, match=sentence):
        custom_slice(E4B, widths, dropped)


def test_less_than_half_of_a_layer_gives_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        custom_slice(E4B, [8192])
        assert not caplog.records
        custom_slice(E4B, [*[8192] * 34, 8191])
    assert [record.getMessage() for record in caplog.records] == [
        "layer 34 keeps 8191 of 16384 neurons; Gemma 3n was not trained with less than half of a layer"
    ]


def test_layers_with_shared_keys_cannot_be_dropped():
    with pytest.raises(ConfigError, match=r"layer 19, whose keys and values layer 24 uses \(full attention\)"):
        check_sharing(E4B, custom_slice(E4B, [], [19]))
    with pytest.raises(ConfigError, match=r"layer 18, whose keys and values layer 20 uses \(sliding attention\)"):
        check_sharing(E4B, custom_slice(E4B, [], [18]))
    check_sharing(E4B, custom_slice(E4B, [], [0, 14, 17, *range(20, 25)]))
    check_sharing(E4B, custom_slice(E4B, [], [19, 24, 29, 34]))
