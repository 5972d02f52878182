"""Outputs of intermediate layers of a vision tower, pooled to a small grid, for distillation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mllm.errors import ConfigError, nearest_names


class Taps:
    """Recorder of the outputs of named modules during a forward pass, average-pooled to `grid` x `grid`.

    Feature maps [V, C, H, W] and patches [V, N, D] become [V, C, grid, grid] in fp32, with gradients. Raise
    `ConfigError` for a name that is not a module of the model.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str], grid: int) -> None:
        self.grid = grid
        self._outputs: dict[str, Tensor] | None = None
        modules = dict(model.named_modules())
        for path in dict.fromkeys(paths):
            if path not in modules:
                similar = ", ".join(nearest_names(path, list(modules), count=2))
                question = f": did you mean {similar}?" if similar else ""
                raise ConfigError(f"there is no module '{path}' to tap{question}")
            module = modules[path]
            # With checkpointing, timm calls the blocks of a stage instead of the stage.
            (module[-1] if isinstance(module, nn.Sequential) else module).register_forward_hook(self._hook(path))

    @contextmanager
    def recorded(self) -> Iterator[Callable[[], dict[str, Tensor]]]:
        """Yield a function that returns the taps by path of the forward pass in the block."""
        self._outputs = {}
        try:
            yield lambda: {path: pooled(features, self.grid) for path, features in (self._outputs or {}).items()}
        finally:
            self._outputs = None  # recomputed outputs of checkpointing are not recorded

    def _hook(self, path: str) -> Any:
        def record(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if self._outputs is not None:
                # Not pooled here: with checkpointing this code runs in a region that is recomputed without it.
                self._outputs[path] = output[0] if isinstance(output, tuple) else output

        return record


def pooled(features: Tensor, grid: int) -> Tensor:
    """Return features [V, C, H, W] or [V, N, D] average-pooled to [V, C, grid, grid], in fp32."""
    if features.dim() == 3:
        side = int(features.shape[1] ** 0.5)
        patches = features[:, -(side * side) :]  # the first token may be a class token
        features = patches.transpose(1, 2).unflatten(2, (side, side))
    return F.adaptive_avg_pool2d(features.float(), grid)


def tap_paths(model: nn.Module, layers: str, chosen: Sequence[int | str] | None, count: int) -> list[str]:
    """Return the module paths of `chosen` layers: indices in the sequence at path `layers`, or module paths.

    None: `count` layers, evenly spaced up to the last, such as 8, 17 and 26 of 27. Raise `ConfigError` for an index out
    of range.
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
