"""MatFormer (arXiv:2310.07707): smaller models that lie nested in a Gemma 3n, cut out without any training.

Of each layer's feed-forward network the first neurons are a network of their own, and some layers can be left out
altogether. So E2B lies in E4B, and other sizes between the two.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from mllm.errors import ConfigError, hint

LAYERS = 35
"""Layers of E4B, which the presets are cut from."""
DROPPED = range(20, 25)
"""What E2B leaves out of them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """A published slice of E4B, whose layers are 16,384 neurons wide, or 8,192 where they are narrow."""

    wide: tuple[int, ...] = ()
    """The layers that keep all their neurons, counted after dropping; the others keep the first half."""
    dropped: tuple[int, ...] = ()


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
"""The table that Google published with Gemma 3n (google/gemma3n-slicing-configs), by billions of effective parameters.

E2B is the official model, the others were picked by their accuracy; of the two of 2.98 B it is the block-level one.
"""


@dataclass(frozen=True)
class Slice:
    """What is kept of a model."""

    layers: tuple[int, ...]
    """Its layers, ascending, by their places in the whole model."""
    widths: tuple[int, ...]
    """How many neurons of the feed-forward network each of them keeps."""


def preset_slice(name: str, config: PretrainedConfig) -> Slice:
    """The slice that the preset `name` is of a model with this config.

    Raises `ConfigError` for an unknown name, and for a model that E4B's presets do not fit.
    """
    known = {other.lower(): other for other in PRESETS}
    if name.lower() not in known:
        raise ConfigError(f"unknown MatFormer preset '{name}'{hint(name, PRESETS)}")
    name, preset = known[name.lower()], PRESETS[known[name.lower()]]
    text = config.get_text_config()
    widths = sorted(set(text.intermediate_size))
    if text.num_hidden_layers != LAYERS or len(widths) > 1:
        shown = " and ".join(f"{width:,}" for width in widths)
        raise ConfigError(
            f"the MatFormer preset '{name}' is a slice of Gemma 3n E4B ({LAYERS} layers of one width), and this "
            f"checkpoint has {text.num_hidden_layers} layers of {shown} neurons: take an E4B, or name a slice of your "
            "own with --ffn-widths and --drop-layers"
        )
    layers = tuple(layer for layer in range(LAYERS) if layer not in preset.dropped)
    wide = widths[0]
    return Slice(layers, tuple(wide if place in preset.wide else wide // 2 for place in range(len(layers))))


def chosen_slice(config: PretrainedConfig, widths: Sequence[int] = (), dropped: Sequence[int] = ()) -> Slice:
    """A slice of one's own: `widths` for the layers that are left (one: for all; none: their own) without `dropped`.

    Raises `ConfigError` where a layer does not exist or is not as wide as asked for.
    """
    text = config.get_text_config()
    count, own = text.num_hidden_layers, text.intermediate_size
    absent = sorted({layer for layer in dropped if not 0 <= layer < count})
    if absent:
        raise ConfigError(f"--drop-layers names layer {absent[0]}, and this checkpoint has layers 0 to {count - 1}")
    layers = tuple(layer for layer in range(count) if layer not in set(dropped))
    if not layers:
        raise ConfigError("--drop-layers names every layer of this checkpoint, and nothing would be left")
    kept = [own[layer] for layer in layers]
    chosen = list(widths) * len(layers) if len(widths) == 1 else list(widths) or kept
    if len(chosen) != len(layers):
        raise ConfigError(
            f"--ffn-widths gives {len(chosen)} widths, and {len(layers)} layers are kept: give one for all, or one for "
            "each (16384x10,8192x20 means 16,384 for ten layers and 8,192 for twenty)"
        )
    for layer, width, full in zip(layers, chosen, kept, strict=True):
        if not 1 <= width <= full:
            raise ConfigError(f"layer {layer} has {full:,} neurons, and --ffn-widths asks for {width:,} of them")
        if 2 * width < full:
            logger.warning("layer %d keeps %d of %d neurons; less than half was never trained", layer, width, full)
    return Slice(layers, tuple(chosen))


def sliced_config(values: dict[str, Any], config: PretrainedConfig, choice: Slice) -> dict[str, Any]:
    """`values`, the content of a config.json, for the slice; `config` is the same with all defaults filled in."""
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
    """Raises `ConfigError` where a layer is kept that reads the keys and values of one that is dropped.

    The last layers of a Gemma 3n have none of their own: they read those of the last layer before them, with the same
    kind of attention, that has some.
    """
    text = config.get_text_config()
    first_shared = text.num_hidden_layers - text.num_kv_shared_layers
    sources = {text.layer_types[layer]: layer for layer in range(first_shared)}
    for layer in choice.layers:
        source = sources[text.layer_types[layer]]
        if layer >= first_shared and source not in choice.layers:
            raise ConfigError(
                f"--drop-layers names layer {source}, whose keys and values layer {layer} reads "
                f"({text.layer_types[layer].replace('_', ' ')}): keep it, or drop all that read it"
            )
