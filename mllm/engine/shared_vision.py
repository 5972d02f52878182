"""Vision features that are computed once for all options of a question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers.utils import ModelOutput

from mllm.structures import Bundle

VISION = "vision"
"""Name of the vision tower among the towers of a model."""
TOLERANCE = 0.02
"""Relative difference up to which features are equal: half-precision kernels round differently for another batch."""


class SharedVision:
    """Vision tower of a model, which computes the images of a question once and repeats their features.

    The batches of a question are copies of one sample with different answers. The first batch of the first question is
    also computed without sharing: if its features are not those of the copies, as in a model whose features of an image
    depend on the other images of the batch, nothing is shared from then on.
    """

    def __init__(self, bundle: Bundle) -> None:
        prefix = bundle.model.towers.get(VISION)
        self.tower: nn.Module | None = None if prefix is None else bundle.model.pretrained.get_submodule(prefix)
        self.is_checked = False
        self._copies = 1
        self._call = 0
        """Number of the next call of the tower in the batch."""
        self._features: list[Any] = []
        """Features of the sample, one entry for each call of the tower in a batch."""

    @contextmanager
    def question(self) -> Iterator[Callable[[int], None]]:
        """Share the features of the images inside the block, whose batches are copies of one sample.

        Yields a function that must be called with the number of copies before each batch.
        """
        tower = self.tower
        if tower is None:
            yield lambda copies: None
            return
        self._features.clear()
        original, is_replaced = tower.forward, "forward" in vars(tower)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._repeated(original, args, kwargs)

        tower.forward = forward
        try:
            yield self._begin_batch
        finally:
            if is_replaced:
                tower.forward = original
            else:
                del tower.forward

    def _begin_batch(self, copies: int) -> None:
        self._copies, self._call = copies, 0

    def _repeated(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the features of all copies, computed for the first one if they are not known yet."""
        if self.tower is None:
            return original(*args, **kwargs)
        copies, call = self._copies, self._call
        self._call += 1
        if call == len(self._features):
            first = [_mapped(value, lambda tensor: _first(tensor, copies)) for value in (args, kwargs)]
            self._features.append(original(*first[0], **first[1]))
        repeated = _mapped(self._features[call], lambda tensor: tensor.repeat(copies, *[1] * (tensor.dim() - 1)))
        if copies > 1 and not self.is_checked:
            self.is_checked = True
            own = original(*args, **kwargs)
            if not _equal(repeated, own):
                self.tower = None
                return own
        return repeated


def _first(tensor: Tensor, copies: int) -> Tensor:
    """Return the first of some copies that are concatenated along the first dimension of a tensor."""
    if tensor.dim() == 0 or len(tensor) % copies:
        return tensor
    return tensor[: len(tensor) // copies]


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return nested tuples, lists, dicts and outputs of transformers with `function` applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value) if value.dim() else value
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _mapped(item, function) for name, item in value.items()})
    if isinstance(value, dict):
        return {name: _mapped(item, function) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(item, function) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{part.name: _mapped(vars(value)[part.name], function) for part in fields(value)})
    return value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(value, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def _equal(first: Any, second: Any) -> bool:
    """Return True if two outputs have equal tensors, apart from rounding."""
    ours, theirs = _tensors(first), _tensors(second)
    return len(ours) == len(theirs) and all(
        one.shape == other.shape and bool((one - other).float().norm() <= TOLERANCE * other.float().norm())
        for one, other in zip(ours, theirs, strict=True)
    )
