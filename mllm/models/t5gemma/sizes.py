"""Dimensions of T5Gemma, and the published sizes (`gemma.research.t5gemma.config`, `T5GemmaPreset`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mllm.errors import ConfigError, hint

PUBLISHED_ROWS = 256128
"""Rows of the embedding tables of every published size in Flax. The vocabulary has 256,000 tokens."""


@dataclass(frozen=True)
class Stack:
    """Dimensions of an encoder or a decoder."""

    layers: int
    width: int
    """Dimension of the embeddings and of the residual stream."""
    hidden: int
    """Dimension between the two matrix products of a feed-forward layer."""
    heads: int
    head_dim: int
    kv_heads: int
    """Heads of keys and values."""
    hidden_first: bool = field(default=False, compare=False)
    """True if the Flax model stores `gating_einsum` as [2, hidden, width] instead of [2, width, hidden]."""


@dataclass(frozen=True)
class Dimensions:
    """Dimensions of a T5Gemma."""

    encoder: Stack
    decoder: Stack
    rows: int
    """Rows of both embedding tables."""

    @property
    def size(self) -> str | None:
        """Return the name of the published size with these stacks, or None."""
        return next((name for name, stacks in SIZES.items() if stacks == (self.encoder, self.decoder)), None)

    @property
    def flax_rows(self) -> int:
        """Return the rows of both embedding tables in Flax, where only the published sizes have padding."""
        return self.rows if self.size is None else PUBLISHED_ROWS


_S = Stack(layers=8, width=512, hidden=1024, heads=8, head_dim=64, kv_heads=8)
_B = Stack(layers=12, width=768, hidden=2048, heads=12, head_dim=64, kv_heads=12)
_L = Stack(layers=24, width=1024, hidden=2816, heads=16, head_dim=64, kv_heads=16)
_ML = Stack(layers=26, width=1152, hidden=6912, heads=4, head_dim=256, kv_heads=4)
_XL = Stack(layers=24, width=2048, hidden=5120, heads=32, head_dim=64, kv_heads=32)
_2B = Stack(layers=26, width=2304, hidden=9216, heads=8, head_dim=256, kv_heads=4)
_9B = Stack(layers=42, width=3584, hidden=14336, heads=16, head_dim=256, kv_heads=8, hidden_first=True)

SIZES = {
    "s-s": (_S, _S),
    "b-b": (_B, _B),
    "l-l": (_L, _L),
    "ml-ml": (_ML, _ML),
    "xl-xl": (_XL, _XL),
    "2b-2b": (_2B, _2B),
    "9b-2b": (_9B, _2B),
    "9b-9b": (_9B, _9B),
}
"""Encoder and decoder of the published sizes."""


def refuse_other_size(source: Path, dimensions: Dimensions, size: str | None) -> None:
    """Raise `ConfigError` if a checkpoint has another size than `size`, or if this is no published size."""
    if size is not None and size not in SIZES:
        raise ConfigError(f"--size {size} is no published size of T5Gemma{hint(size, SIZES)}")
    if size is not None and dimensions.size != size:
        raise ConfigError(f"--model {source} is a T5Gemma {dimensions.size or 'of no published size'}, not {size}")
