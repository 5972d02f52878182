"""What the layers of a vision tower give, for heads that read them and for a projector that reads a mixture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from mllm.errors import ConfigError
from mllm.models.heads.fusion import LayerFusion


class VisionLayers:
    """Keeps the output of every layer of a vision tower while a forward runs.

    Raises `ConfigError` for a tower that does not see every image as one square grid of patches, or a processor that
    shows it otherwise.
    """

    def __init__(self, tower: nn.Module, config: Any, processor: Any) -> None:
        sizes = config.to_dict()
        known = all(isinstance(sizes.get(key), int) for key in ("image_size", "patch_size", "hidden_size"))
        if not known or not _shows_squares(processor, sizes["image_size"]):
            raise ConfigError(
                f"a head that looks at the image needs a vision tower that sees it as one square grid of patches, and "
                f"{type(tower).__name__} does not: remove the MaskHead"
            )
        self.layers = _layers_of(tower)
        self.grid = sizes["image_size"] // sizes["patch_size"]
        self.width = int(sizes["hidden_size"])
        self._kept: list[Tensor] | None = None
        for layer in self.layers:
            layer.register_forward_hook(self._keep)

    def __len__(self) -> int:
        return len(self.layers)

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """The layers' outputs [V, N, D], filled by a forward inside the block; empty where no image was seen."""
        self._kept = []
        try:
            yield self._kept
        finally:
            self._kept = None  # what checkpointing computes again later is not kept

    def blank(self, like: Tensor) -> list[Tensor]:
        """What stands in for one image where a batch has none."""
        return [like.new_zeros(1, self.grid**2, self.width) for _ in self.layers]

    def _keep(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if self._kept is not None:
            patches = output[0] if isinstance(output, tuple) else output
            self._kept.append(patches[:, -(self.grid**2) :])  # CLIP's class token stands first


def fuse_language_layers(model: PreTrainedModel, tower: nn.Module) -> LayerFusion:
    """Lets the projector of a LLaVA read a learned mixture of the tower's hidden states, all but the last.

    PerceptionGPT (arXiv:2311.06612, section 3.2). Raises `ConfigError` for other models.
    """
    values = model.config.to_dict()
    read = values.get("vision_feature_layer")
    if not isinstance(read, int):
        raise ConfigError(
            f"fuse_vision_layers=True needs a LLaVA, whose projector reads one layer of the vision tower; "
            f"{type(model).__name__} is none: remove it"
        )
    layers = _layers_of(tower)
    fusion = LayerFusion(len(layers))
    open_states: list[list[Tensor]] = []  # one list while the tower runs; none when checkpointing computes again

    def open_list(tower: nn.Module, arguments: tuple[Any, ...]) -> None:
        open_states[:] = [[]]

    def begin(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        for states in open_states:
            states.append(arguments[0] if arguments else options["hidden_states"])

    def keep(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        for states in open_states:
            states.append(output[0] if isinstance(output, tuple) else output)

    def mix(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        # transformers gives only the state that the projector reads, so the others are kept on their way.
        given, states = list(output.hidden_states), open_states.pop()
        with torch.autocast(states[0].device.type, enabled=False):
            given[read] = fusion(states)
        output.hidden_states = tuple(given)
        return output

    tower.register_forward_pre_hook(open_list)
    layers[0].register_forward_pre_hook(begin, with_kwargs=True)
    for layer in list(layers)[:-1]:
        layer.register_forward_hook(keep)
    tower.register_forward_hook(mix)
    return fusion


def _layers_of(tower: nn.Module) -> nn.ModuleList:
    """The layers of a vision tower: its longest list of modules."""
    return max((module for module in tower.modules() if isinstance(module, nn.ModuleList)), key=len)


def _shows_squares(processor: Any, side: int) -> bool:
    """Whether the processor makes one picture of `side` pixels of every image, whatever its shape."""
    images = [Image.new("RGB", (2 * side, side // 2)), Image.new("RGB", (side, side))]
    pixels = processor.image_processor(images, return_tensors="pt").get("pixel_values")
    return isinstance(pixels, Tensor) and pixels.shape[:1] + pixels.shape[2:] == (2, side, side)
