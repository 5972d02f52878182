"""Outliers of 8-bit layers, through which the tokens of a batch influence each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import bitsandbytes as bnb
from torch import nn


@contextmanager
def without_outliers(model: nn.Module) -> Iterator[None]:
    """Quantize the inputs of all 8-bit layers token by token inside the block.

    LLM.int8() computes a column in 16 bits if any token of the batch exceeds a threshold in it (arXiv:2208.07339,
    section 3.2). So one token changes the rounding of all others, as if the model attended to it.
    """
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear8bitLt)]
    thresholds = [layer.state.threshold for layer in layers]
    for layer in layers:
        layer.state.threshold = 0.0
    try:
        yield
    finally:
        for layer, threshold in zip(layers, thresholds, strict=True):
            layer.state.threshold = threshold
