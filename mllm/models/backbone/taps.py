"""Outputs of inner layers of a vision tower, pooled to a small grid, for what is learned from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mllm.errors import ConfigError, near


class Taps:
    """Keeps what named modules give while a forward runs, averaged to `grid` x `grid` places; nothing is detached.

    A convolution's maps [V, C, H, W] and a transformer's patches [V, N, D] both become [V, C, grid, grid] in fp32.
    Raises `ConfigError` for a name that the model has no module of.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str], grid: int) -> None:
        self.grid = grid
        self._kept: dict[str, Tensor] | None = None
        modules = dict(model.named_modules())
        for path in dict.fromkeys(paths):
            if path not in modules:
                close = ", ".join(near(path, list(modules), count=2))
                raise ConfigError(f"there is no module '{path}' to tap{f': did you mean {close}?' if close else ''}")
            module = modules[path]
            # timm's checkpointing calls the blocks of a stage and not the stage.
            (module[-1] if isinstance(module, nn.Sequential) else module).register_forward_hook(self._keeper(path))

    @contextmanager
    def recorded(self) -> Iterator[Callable[[], dict[str, Tensor]]]:
        """A function that gives the taps by path, of a forward inside the block."""
        self._kept = {}
        try:
            yield lambda: {path: pooled(features, self.grid) for path, features in (self._kept or {}).items()}
        finally:
            self._kept = None  # what checkpointing computes again later is not kept

    def _keeper(self, path: str) -> Any:
        def keep(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if self._kept is not None:
                # Not pooled yet: under checkpointing this runs in a region that will be computed again without it.
                self._kept[path] = output[0] if isinstance(output, tuple) else output

        return keep


def pooled(features: Tensor, grid: int) -> Tensor:
    """Features [V, C, H, W] or [V, N, D] averaged over a `grid` x `grid` division of the image: [V, C, grid, grid]."""
    if features.dim() == 3:
        side = int(features.shape[1] ** 0.5)
        patches = features[:, -(side * side) :]  # a class token stands first
        features = patches.transpose(1, 2).unflatten(2, (side, side))
    return F.adaptive_avg_pool2d(features.float(), grid)


def tap_paths(model: nn.Module, layers: str, chosen: Sequence[int | str] | None, count: int) -> list[str]:
    """Module paths of `chosen` layers: numbers among `layers` (the path of the tower's sequence), or paths themselves.

    None: `count` layers, evenly spread to the last, which are 8, 17 and 26 of 27. Raises `ConfigError` for a number
    that there is no layer of.
    """
    depth = len(list(model.get_submodule(layers).children()))
    if chosen is None:
        chosen = [max(0, round(depth * (number + 1) / count) - 1) for number in range(count)]
    paths = []
    for layer in chosen:
        if isinstance(layer, int) and not 0 <= layer < depth:
            raise ConfigError(f"there is no layer {layer} to tap: {layers} has {depth}, from 0 to {depth - 1}")
        paths.append(f"{layers}.{layer}" if isinstance(layer, int) else layer)
    return paths
