"""Writer of random weights in the shapes of a model, also of a model that is larger than the memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from mllm.models.backbone.weight_files import TensorHeader, file_names, write_index, write_safetensors

BLOCK = 2**20
"""Number of random values, which are repeated, because drawing billions would take longer than their use."""
STANDARD_DEVIATION = 0.02
"""That of the initial weights of transformers."""


def write_weights(folder: Path, model: nn.Module, shard_bytes: int) -> None:
    """Write the parameters of a model on the meta device to `folder` in bf16.

    Matrices are random, the weights of LayerNorms 1, and other vectors 0, as transformers initializes them.
    """
    ones = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    shards: list[list[TensorHeader]] = [[]]
    for name, parameter in model.named_parameters():
        header = TensorHeader(name, "BF16", tuple(parameter.shape))
        if shards[-1] and sum(other.size for other in shards[-1]) + header.size > shard_bytes:
            shards.append([])
        shards[-1].append(header)
    files = dict(zip(file_names(len(shards)), shards, strict=True))
    for file, headers in files.items():
        write_safetensors(folder / file, headers, _values(headers, ones))
    if len(files) > 1:
        write_index(folder, {header.name: file for file, headers in files.items() for header in headers})


def _values(headers: list[TensorHeader], ones: set[str]) -> Iterator[Tensor]:
    block = STANDARD_DEVIATION * torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).bfloat16()
    for header in headers:
        if len(header.shape) < 2:
            yield torch.full((header.elements,), float(header.name in ones), dtype=block.dtype)
        else:  # in pieces: an embedding is larger than what a small machine has free
            for start in range(0, header.elements, BLOCK):
                yield block[: min(BLOCK, header.elements - start)]
