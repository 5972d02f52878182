"""MatFormer (arXiv:2310.07707): smaller models nested in a Gemma 3n, extracted without training.

The first neurons of each feed-forward network are a smaller network, and some layers can be left out. E4B contains E2B
and models of sizes between the two.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from mllm.errors import ConfigError, hint

LAYERS = 35
"""Number of layers of E4B, the source of the presets."""
DROPPED = range(20, 25)
"""The layers that E2B leaves out."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """A published slice of E4B. Its wide layers have 16,384 neurons, the others 8,192."""

    wide: tuple[int, ...] = ()
    """The wide layers, numbered after dropping."""
    dropped: tuple[int, ...] = ()
    """The layers of E4B that are left out."""


PRESETS = {
    "E4B": Preset(tuple(range(LAYERS))),
    "E2B": Preset((), tuple(DROPPED)),
    "E1.96B": Preset((4,), tuple(DROPPED)),
    "E2.49B": Preset(tuple(range(20, 25))),
    "E2.54B": Preset((4, *range(20, 25))),
    "E2.69B": Preset((4, 9, 14, *range(19, 25))),
    "E2.73B": Preset(tuple(range(15, 25))),
    "E2.98B": Preset(tuple(range(10, 25))),
    "E3.18B": Preset((4, *range(9, 25), 29, 34)),
    "E3.24B": Preset(tuple(range(10, 30))),
    "E3.39B": Preset((4, *range(9, 30), 34)),
    "E3.49B": Preset(tuple(range(5, 30))),
    "E3.59B": Preset((*range(4, 30), 34)),
    "E3.79B": Preset(tuple(range(4, LAYERS))),
}
"""The slices that Google published (google/gemma3n-slicing-configs), by billions of effective parameters.

E2B is the official model; the others were selected by accuracy. Google published two slices of 2.98B; this one is the
block-level slice.
"""


@dataclass(frozen=True)
class Slice:
    """Layers and neurons of a slice."""

    layers: tuple[int, ...]
    """Its layers in ascending order, numbered as in the full model."""
    widths: tuple[int, ...]
    """The number of neurons in the feed-forward network of each layer."""


def preset_slice(name: str, config: PretrainedConfig) -> Slice:
    """Return the slice of the preset `name` for a model with this config.

    Raises `ConfigError` for an unknown name, and for a model other than E4B.
    """
    presets_by_lower = {preset_name.lower(): preset_name for preset_name in PRESETS}
    if name.lower() not in presets_by_lower:
        raise ConfigError(f"unknown MatFormer preset '{name}'{hint(name, PRESETS)}")
    name = presets_by_lower[name.lower()]
    preset = PRESETS[name]
    text = config.get_text_config()
    widths = sorted(set(text.intermediate_size))
    if text.num_hidden_layers != LAYERS or len(widths) > 1:
        neurons = " and ".join(f"{width:,}" for width in widths)
        raise ConfigError(
            f"the MatFormer preset '{name}' is a slice of Gemma 3n E4B ({LAYERS} layers of one width), but this "
            f"checkpoint has {text.num_hidden_layers} layers of {neurons} neurons: use an E4B, or choose a custom "
            "slice with --ffn-widths and --drop-layers"
        )
    layers = tuple(layer for layer in range(LAYERS) if layer not in preset.dropped)
    wide = widths[0]
    return Slice(layers, tuple(wide if position in preset.wide else wide // 2 for position in range(len(layers))))


def custom_slice(config: PretrainedConfig, widths: Sequence[int] = (), dropped: Sequence[int] = ()) -> Slice:
    """Return a slice without the layers `dropped`; `widths` are the neurons of each remaining layer.

    One width applies to all layers; without widths the layers keep theirs. Raises `ConfigError` for a layer that does
    not exist and for a width above that of the layer.
    """
    text = config.get_text_config()
    count, full_widths = text.num_hidden_layers, text.intermediate_size
    absent = sorted({layer for layer in dropped if not 0 <= layer < count})
    if absent:
        raise ConfigError(f"--drop-layers names layer {absent[0]}, but this checkpoint has layers 0 to {count - 1}")
    layers = tuple(layer for layer in range(count) if layer not in set(dropped))
    if not layers:
        raise ConfigError("--drop-layers names every layer of this checkpoint: keep at least one")
    available = [full_widths[layer] for layer in layers]
    chosen = list(widths) * len(layers) if len(widths) == 1 else list(widths) or available
    if len(chosen) != len(layers):
        raise ConfigError(
            f"--ffn-widths has {len(chosen)} widths for {len(layers)} layers: pass one for all, or one for "
            "each (16384x10,8192x20 means 16,384 for ten layers and 8,192 for twenty)"
        )
    for layer, width, full in zip(layers, chosen, available, strict=True):
        if not 1 <= width <= full:
            raise ConfigError(f"layer {layer} has {full:,} neurons, but --ffn-widths requests {width:,}")
        if 2 * width < full:
            logger.warning(
                "layer %d keeps %d of %d neurons; Gemma 3n was not trained with less than half of a layer",
                layer,
                width,
                full,
            )
    return Slice(layers, tuple(chosen))


def sliced_config(values: dict[str, Any], config: PretrainedConfig, choice: Slice) -> dict[str, Any]:
    """Return a copy of `values`, the content of a config.json, with the sizes of the slice.

    `config` is the same config with all defaults filled in.
    """
    text = config.get_text_config()
    first_shared = text.num_hidden_layers - text.num_kv_shared_layers
    changes = {
        "num_hidden_layers": len(choice.layers),
        "intermediate_size": list(choice.widths),
        "layer_types": [text.layer_types[layer] for layer in choice.layers],
        "activation_sparsity_pattern": [text.activation_sparsity_pattern[layer] for layer in choice.layers],
        "num_kv_shared_layers": sum(layer >= first_shared for layer in choice.layers),
    }
    if "text_config" in values:
        return {**values, "text_config": {**values["text_config"], **changes}}
    return {**values, **changes}


def check_sharing(config: PretrainedConfig, choice: Slice) -> None:
    """Raise `ConfigError` if a layer is kept that uses the keys and values of a dropped layer.

    The last layers of a Gemma 3n compute no keys and values. They use those of the last layer before them that computes
    some and has the same type of attention.
    """
    text = config.get_text_config()
    first_shared = text.num_hidden_layers - text.num_kv_shared_layers
    sources = {text.layer_types[layer]: layer for layer in range(first_shared)}
    for layer in choice.layers:
        source = sources[text.layer_types[layer]]
        if layer >= first_shared and source not in choice.layers:
            raise ConfigError(
                f"--drop-layers names layer {source}, whose keys and values layer {layer} uses "
                f"({text.layer_types[layer].replace('_', ' ')}): keep it, or drop all layers that use it"
            )
