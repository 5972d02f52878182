"""Attention inside segments of a row: a token attends to its own segment and to the prefix of this segment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Made = TypeVar("Made")
NAME = "mllm_segments"
"""Name of this attention in transformers (`attn_implementation`)."""
LARGEST_MASK = 2**22
"""Number of entries of a mask, of tokens and those that they attend to, above which a segment is computed in parts."""
ROWS = 1024
"""Tokens of such a part in a layer with a sliding window."""


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

    @property
    def is_long(self) -> bool:
        """Return True if a mask of this segment would take too much memory."""
        own = self.end - self.start
        return own * (self.before + own) > LARGEST_MASK

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
        own = self.end - self.start
        narrow = window is not None and window < self.before + own
        if not self.before and not self.blocks and not narrow:
            return None
        return self.mask_of_rows(0, own, 0, self.before + own, window, device)

    def mask_of_rows(
        self, first: int, last: int, low: int, high: int, window: int | None, device: torch.device
    ) -> Tensor:
        """Return which of the tokens `low` to `high` of prefix and segment the tokens `first` to `last` attend to."""
        before = self.before
        query = torch.arange(before + first, before + last, device=device)[:, None]
        key = torch.arange(low, high, device=device)[None, :]
        mask = key <= query
        if window is not None:
            mask &= key > query - window
        for start, end in self.blocks:
            rows, columns = slice(max(0, start - first), max(0, end - first)), before - low
            mask[rows, max(0, columns + start) : max(0, columns + end)] = True
        return mask


class RowAttention(Protocol):
    """Attention of all segments of a row at once."""

    def __call__(
        self,
        segments: Segments,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window: int | None,
        scale: float | None,
        softcap: float | None,
        /,
    ) -> Tensor:
        """Return the attention [1, H, T, D] of query [1, H, T, D] and of key and value, which may have fewer heads."""
        ...


@dataclass(frozen=True)
class Segments:
    """The segments of one row, in order, which replace the attention mask of all layers."""

    items: Sequence[Segment]
    attend: RowAttention | None = None
    """Attention of the row; None: SDPA of each segment."""
    _made: dict[Any, Any] = field(default_factory=dict)

    def computed_once(self, key: Any, make: Callable[[], Made]) -> Made:
        """Return the result of `make` of the first call with an equal key: layers and repeated passes share it."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def mask(self, segment: Segment, window: int | None, device: torch.device) -> Tensor | None:
        """Return the mask of a segment; equal masks are made once."""
        key = (segment.end - segment.start, segment.before, segment.blocks, window, device)
        return self.computed_once(key, lambda: segment.mask(window, device))


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
    ALL_ATTENTION_FUNCTIONS.register(NAME, segment_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _mask)
    model.config.get_text_config(decoder=True)._attn_implementation = NAME


def _mask(*arguments: Any, **options: Any) -> Any:
    """Return the current segments, or the mask of SDPA."""
    return _current[-1] if _current else sdpa_mask(*arguments, **options)


def segment_attention(
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
    if attention_mask.attend is not None and not dropout:
        row = attention_mask.attend(attention_mask, query, key, value, sliding_window, scaling, softcap)
        return row.transpose(1, 2), None
    key, value = _repeated(key, query), _repeated(value, query)
    parts: list[Tensor] = []
    attend = partial(attend, dropout_p=dropout, scale=scaling)
    for segment in attention_mask.items:
        keys, values = segment.with_prefix(key), segment.with_prefix(value)
        own = query[:, :, segment.start : segment.end]
        if segment.is_long and sliding_window is not None and sliding_window < keys.shape[2]:
            parts += _in_windows(attend, attention_mask, segment, own, keys, values, sliding_window)
        elif segment.is_long:
            parts += _without_mask(attend, segment, own, keys, values)
        else:
            mask = attention_mask.mask(segment, sliding_window, query.device)
            parts.append(attend(own, keys, values, mask, is_causal=mask is None))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _in_windows(
    attend: Any, segments: Segments, segment: Segment, own: Tensor, keys: Tensor, values: Tensor, window: int
) -> Iterator[Tensor]:
    """Yield the attention of the tokens of a segment, `ROWS` at a time, to those in their windows and blocks.

    The masks of all parts together have `window + ROWS` entries for a token, and not one for each earlier token. Those
    of parts without blocks are equal, except that of the first part and the last one, and are made once.
    """
    before, count = segment.before, own.shape[2]
    for first in range(0, count, ROWS):
        last = min(count, first + ROWS)
        touched = [block for block in segment.blocks if block[0] < last and block[1] > first]
        low = min([before + first - window + 1, *(before + start for start, _ in touched)])
        low, high = max(0, low), before + max([last, *(end for _, end in touched)])
        make = partial(segment.mask_of_rows, first, last, low, high, window, own.device)
        place = (before + first - low, last - first, high - low, window, own.device)
        mask = make() if touched else segments.computed_once(place, make)
        yield attend(own[:, :, first:last], keys[:, :, low:high], values[:, :, low:high], mask)


def _without_mask(attend: Any, segment: Segment, own: Tensor, keys: Tensor, values: Tensor) -> Iterator[Tensor]:
    """Yield the attention of the tokens of a segment to all earlier ones and to their blocks, without a mask.

    Causal attention is computed for the prefix, too, as its result is then known to end at the last token. Tokens of a
    block attend to everything up to its end, so their part needs no mask either.
    """
    before = segment.before
    rows = F.pad(own, (0, 0, before, 0))
    causal = attend(rows, keys, values, None, is_causal=True)[:, :, before:]
    position = 0
    for start, end in segment.blocks:
        yield causal[:, :, position:start]
        yield attend(own[:, :, start:end], keys[:, :, : before + end], values[:, :, : before + end], None)
        position = end
    yield causal[:, :, position:]


def _repeated(states: Tensor, query: Tensor) -> Tensor:
    """Return keys or values [B, h, T, D] with as many heads as the query [B, H, T, D]."""
    repeats = query.shape[1] // states.shape[1]
    return states if repeats == 1 else states.repeat_interleave(repeats, dim=1)


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
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
    return F.dropout(weights, dropout_p, training=dropout_p > 0) @ value


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
