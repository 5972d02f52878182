"""Attention inside segments of a row: a token attends to its own segment and to the prefix of this segment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "mllm_segments"
"""Name of this attention in transformers (`attn_implementation`)."""


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of a row that attend to their prefix, to earlier tokens among them, and to their image block.

    Positions of tokens continue those of the prefix.
    """

    start: int
    end: int
    prefix: tuple[tuple[int, int], ...] = ()
    """Start and end of the runs of tokens in the row that all tokens of this segment attend to, in their order."""
    blocks: tuple[tuple[int, int], ...] = ()
    """Start and end, from the start of the segment, of blocks whose tokens attend to each other in both directions, as
    the tokens of an image do in Gemma 3."""

    @property
    def before(self) -> int:
        """Return the number of tokens of the prefix."""
        return sum(end - start for start, end in self.prefix)

    def with_prefix(self, tensor: Tensor) -> Tensor:
        """Return the tokens of the prefix and of the segment of a row [1, H, T, D]."""
        runs = [tensor[:, :, start:end] for start, end in (*self.prefix, (self.start, self.end))]
        return torch.cat(runs, dim=2) if self.prefix else runs[0]

    def mask(self, window: int | None, device: torch.device) -> Tensor | None:
        """Return which tokens [n, p + n] each token attends to. None: all earlier tokens, without a prefix.

        Args:
            window: Number of positions that a token attends to with its own; None: all.
            device: Device of the mask.
        """
        before, own = self.before, self.end - self.start
        narrow = window is not None and window < before + own
        if not before and not self.blocks and not narrow:
            return None
        query = torch.arange(before, before + own, device=device)[:, None]
        key = torch.arange(before + own, device=device)[None, :]
        mask = key <= query
        if narrow:
            mask &= key > query - (window or 0)
        for start, end in self.blocks:
            mask[start:end, before + start : before + end] = True
        return mask


@dataclass(frozen=True)
class Segments:
    """The segments of one row, in order, which replace the attention mask of all layers."""

    items: Sequence[Segment]
    _masks: dict[Any, Tensor | None] = field(default_factory=dict)

    def mask(self, segment: Segment, window: int | None, device: torch.device) -> Tensor | None:
        """Return the mask of a segment; equal masks are made once."""
        key = (segment.end - segment.start, segment.before, segment.blocks, window, device)
        if key not in self._masks:
            self._masks[key] = segment.mask(window, device)
        return self._masks[key]


_current: list[Segments] = []
"""The segments of the forward passes that are running, the innermost last."""


@contextmanager
def attending_in(segments: Segments) -> Iterator[None]:
    """Let the layers of a model with this attention attend inside `segments` in the block.

    The layers receive the segments as their attention mask, so that gradient checkpointing repeats the same attention
    in the backward pass, after the block.
    """
    _current.append(segments)
    try:
        yield
    finally:
        _current.pop()


def use_segment_attention(model: PreTrainedModel) -> None:
    """Let the language model of `model` attend inside segments; without segments it attends as with SDPA.

    Architectures that cap their attention scores (Gemma 2) are computed with the cap, which SDPA has not.
    """
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _mask)
    model.config.get_text_config(decoder=True)._attn_implementation = NAME


def _mask(*arguments: Any, **options: Any) -> Any:
    """Return the current segments, or the mask of SDPA."""
    return _current[-1] if _current else sdpa_mask(*arguments, **options)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention [1, T, H, D] of query [1, H, T, D] and of key and value, which may have fewer heads.

    Without segments there are B rows instead of one. Scores are capped at `softcap` if it is not None.
    """
    if softcap is not None:
        attend: Any = partial(_capped, softcap=softcap)
    else:
        attend = F.scaled_dot_product_attention
    if not isinstance(attention_mask, Segments) and softcap is not None:
        key, value = _repeated(key, query), _repeated(value, query)
        is_causal = attention_mask is None and query.shape[2] > 1
        return attend(query, key, value, attention_mask, dropout, is_causal, scaling).transpose(1, 2), None
    if not isinstance(attention_mask, Segments):
        output: Any = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
        return output
    assert query.shape[0] == 1, "segments describe one row"
    key, value = _repeated(key, query), _repeated(value, query)
    parts = []
    for segment in attention_mask.items:
        mask = attention_mask.mask(segment, sliding_window, query.device)
        keys, values = segment.with_prefix(key), segment.with_prefix(value)
        own = query[:, :, segment.start : segment.end]
        parts.append(attend(own, keys, values, mask, dropout, is_causal=mask is None, scale=scaling))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _repeated(states: Tensor, query: Tensor) -> Tensor:
    """Return keys or values [B, h, T, D] with as many heads as the query [B, H, T, D]."""
    repeats = query.shape[1] // states.shape[1]
    return states if repeats == 1 else states.repeat_interleave(repeats, dim=1)


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    softcap: float,
) -> Tensor:
    """Return attention as `scaled_dot_product_attention` does, with scores of `softcap * tanh(scores / softcap)`."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = softcap * torch.tanh(query @ key.transpose(-2, -1) * scale / softcap)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    # As in transformers, the softmax is computed in fp32 at least.
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return F.dropout(weights, dropout, training=dropout > 0) @ value
