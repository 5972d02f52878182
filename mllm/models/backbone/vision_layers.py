"""Outputs of the layers of a vision tower, for heads, and for a projector that reads a mixture of layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from mllm.errors import ConfigError
from mllm.models.heads.fusion import LayerFusion


class VisionLayers:
    """Recorder of the output of every layer of a vision tower during a forward pass.

    `reader` names the head that reads them, for messages. Raise `ConfigError` if tower and processor do not represent
    every image as one square grid of patches.
    """

    def __init__(self, tower: nn.Module, config: Any, processor: Any, reader: str) -> None:
        sizes = config.to_dict()
        known = all(isinstance(sizes.get(key), int) for key in ("image_size", "patch_size", "hidden_size"))
        if not known or not _makes_squares(processor, sizes["image_size"]):
            raise ConfigError(image_head_message(reader, type(tower).__name__))
        self.layers = _layers_of(tower)
        self.grid = sizes["image_size"] // sizes["patch_size"]
        self.width = int(sizes["hidden_size"])
        self._outputs: list[Tensor] | None = None
        for layer in self.layers:
            layer.register_forward_hook(self._record)

    def __len__(self) -> int:
        return len(self.layers)

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Yield a list that the forward pass in the block fills with layer outputs [V, N, D]. Empty without images."""
        self._outputs = []
        try:
            yield self._outputs
        finally:
            self._outputs = None  # recomputed outputs of checkpointing are not recorded

    def blank(self, like: Tensor) -> list[Tensor]:
        """Return zero outputs of one image, for a batch without images."""
        return [like.new_zeros(1, self.grid**2, self.width) for _ in self.layers]

    def _record(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if self._outputs is not None:
            patches = output[0] if isinstance(output, tuple) else output
            self._outputs.append(patches[:, -(self.grid**2) :])  # the first token of CLIP is a class token


def image_reader(heads: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the words for the first head of `model_args.heads` that reads the image, or None."""
    if "mask" in heads:
        return "MaskHead"
    return "BoxHead with attention" if heads.get("box", {}).get("attention") is not None else None


def image_head_message(reader: str, name: str) -> str:
    """Return the message for a head that reads the image, on a model or vision tower `name` without a square grid."""
    fix = "remove the MaskHead" if reader == "MaskHead" else "remove attention from the BoxHead"
    return (
        f"a {reader} needs a vision tower that divides an image into one square grid of patches, which {name} does "
        f"not: {fix}"
    )


def fusion_message(name: str) -> str:
    """Return the message for `fuse_vision_layers` on a model `name` that is no LLaVA."""
    return (
        f"fuse_vision_layers=True needs a LLaVA, whose projector reads one layer of the vision tower, but the model is "
        f"{name}: remove fuse_vision_layers"
    )


def fuse_language_layers(model: PreTrainedModel, tower: nn.Module | None) -> LayerFusion:
    """Replace the input of a LLaVA's projector by a learned mixture of the tower's hidden states, except the last.

    PerceptionGPT (arXiv:2311.06612, section 3.2). Raise `ConfigError` for other models.
    """
    values = model.config.to_dict()
    layer_read = values.get("vision_feature_layer")
    if not isinstance(layer_read, int) or tower is None:
        raise ConfigError(fusion_message(f"a {type(model).__name__}"))
    layers = _layers_of(tower)
    fusion = LayerFusion(len(layers))
    open_states: list[list[Tensor]] = []  # one list while the tower runs, none while checkpointing recomputes

    def open_list(tower: nn.Module, arguments: tuple[Any, ...]) -> None:
        open_states[:] = [[]]

    def begin(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        for states in open_states:
            states.append(arguments[0] if arguments else options["hidden_states"])

    def keep(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        for states in open_states:
            states.append(output[0] if isinstance(output, tuple) else output)

    def mix(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        # transformers returns only the state that the projector reads, so the others are recorded by hooks.
        hidden_states, states = list(output.hidden_states), open_states.pop()
        with torch.autocast(states[0].device.type, enabled=False):
            hidden_states[layer_read] = fusion(states)
        output.hidden_states = tuple(hidden_states)
        return output

    tower.register_forward_pre_hook(open_list)
    layers[0].register_forward_pre_hook(begin, with_kwargs=True)
    for layer in list(layers)[:-1]:
        layer.register_forward_hook(keep)
    tower.register_forward_hook(mix)
    return fusion


def _layers_of(tower: nn.Module) -> nn.ModuleList:
    """Return the layers of a vision tower: its longest list of modules."""
    return max((module for module in tower.modules() if isinstance(module, nn.ModuleList)), key=len)


def _makes_squares(processor: Any, side: int) -> bool:
    """Return True if the processor converts an image of any shape to one square of `side` pixels."""
    images = [Image.new("RGB", (2 * side, side // 2)), Image.new("RGB", (side, side))]
    pixels = processor.image_processor(images, return_tensors="pt").get("pixel_values")
    return isinstance(pixels, Tensor) and pixels.shape[:1] + pixels.shape[2:] == (2, side, side)
