"""Names of the parameters of adapters in a model of PEFT."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def adapter_parameter_names(model: nn.Module) -> set[str]:
    """Return the names of all parameters of adapters: those that the tuner layers of PEFT declare as their own."""
    return {
        f"{prefix}.{name}"
        for prefix, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer) and isinstance(layer, nn.Module)
        for name, _ in layer.named_parameters()
        if name.partition(".")[0] in layer.adapter_layer_names
    }
