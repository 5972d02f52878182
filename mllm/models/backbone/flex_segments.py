"""Attention inside segments by PyTorch's FlexAttention: one kernel for a row, which skips blocks without attention.

The tokens of a row form trees: the parent of a token is the token before it in its sample, so samples that share their
first tokens are branches of one tree. A token attends to its ancestors and to itself. The tree is visited depth first:
`enter` is the number of a token in this order, and `leave` the number after its last descendant, so `k` is an ancestor
of `q` or equal to it if `enter[k] <= enter[q] < leave[k]`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from mllm.models.backbone.segment_attention import Segment, Segments, to_device

BLOCK = 128
"""Tokens of a block in both directions. A block without attention is skipped."""
ROWS = 1024
"""Tokens whose attention is computed at once to find the blocks."""
COMPILED_SHAPES = 64
"""Number of shapes that PyTorch may compile. Its default of 8 is less than lengths, dtypes and gradients can need."""


@dataclass(frozen=True)
class Tree:
    """Numbers of the tokens of a row [T], by which one token can tell if it attends to another."""

    enter: np.ndarray
    leave: np.ndarray
    order: np.ndarray
    """Position of each token in its sample."""
    block: np.ndarray
    """Number of the image block of each token; -1 outside of blocks."""

    @classmethod
    def of(cls, items: Sequence[Segment], length: int) -> Tree:
        """Return the numbers of the tokens of segments in a row of `length` tokens; padding attends to nothing."""
        tree = cls(*(np.full(length, value, dtype=np.int32) for value in (-1, -1, 0, -1)))
        starts = [segment.start for segment in items]
        branches: list[list[tuple[int, int]]] = [[] for _ in items]
        roots = []
        for index, segment in enumerate(items):
            own = segment.end - segment.start
            tree.order[segment.start : segment.end] = np.arange(segment.before, segment.before + own)
            for start, end in segment.blocks:
                tree.block[segment.start + start : segment.start + end] = segment.start + start
            if not segment.prefix:
                roots.append(index)
                continue
            last = segment.prefix[-1][1] - 1
            assert tree.order[last] == segment.before - 1, "the prefix is not a path from the start of a sample"
            parent = bisect_right(starts, last) - 1
            branches[parent].append((last - starts[parent], index))
        tree._number(items, roots, branches)
        return tree

    def _number(self, items: Sequence[Segment], roots: list[int], branches: list[list[tuple[int, int]]]) -> None:
        """Number the tokens depth first: the branches of a token precede the next token of its segment.

        Args:
            items: The segments. A segment precedes its branches.
            roots: Indices of those without a prefix.
            branches: For each segment, the position in it and the index of the segments that branch off.
        """
        totals = [segment.end - segment.start for segment in items]
        for index in reversed(range(len(items))):
            totals[index] += sum(totals[branch] for _, branch in branches[index])
        firsts = dict(zip(roots, np.cumsum([0, *(totals[root] for root in roots)]).tolist(), strict=False))
        for index, segment in enumerate(items):
            between = np.zeros(segment.end - segment.start, dtype=np.int32)
            for offset, branch in branches[index]:
                firsts[branch] = int(between[offset])
                between[offset] += totals[branch]
            enter = firsts[index] + np.arange(len(between)) + np.cumsum(between) - between
            for offset, branch in branches[index]:
                firsts[branch] += int(enter[offset]) + 1
            self.enter[segment.start : segment.end] = enter
            self.leave[segment.start : segment.end] = firsts[index] + totals[index]


@dataclass(frozen=True)
class RowMask:
    """The numbers of a `Tree` [T] on a device, and a window, of which FlexAttention computes single elements."""

    enter: Tensor
    leave: Tensor
    order: Tensor
    block: Tensor
    window: Tensor
    """Number of positions that a token attends to with its own, []. A tensor, because a number would be compiled in."""

    @classmethod
    def of(cls, segments: Segments, window: int | None, device: torch.device) -> RowMask:
        """Return the mask of a row, padded to a power of two, so that few lengths are compiled."""
        length = max(BLOCK, 1 << (segments.items[-1].end - 1).bit_length())
        tree = Tree.of(segments.items, length)
        numbers = torch.from_numpy(np.stack([tree.enter, tree.leave, tree.order, tree.block]))
        enter, leave, order, block = to_device(numbers, device).unbind()
        # `full` writes on the device: a copy of a number would wait for it.
        return cls(enter, leave, order, block, torch.full((), length if window is None else window, device=device))

    def __len__(self) -> int:
        return len(self.enter)

    def mask_mod(self) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
        """Return the function of FlexAttention that returns which keys the queries at some positions attend to."""
        enter, leave, order, block, window = self.enter, self.leave, self.order, self.block, self.window

        def attends(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
            is_ancestor = (enter[key] <= enter[query]) & (enter[query] < leave[key])
            is_near = order[query] - order[key] < window
            return (is_ancestor & is_near) | ((block[query] == block[key]) & (block[query] >= 0))

        return attends

    def blocks(self) -> BlockMask:
        """Return the blocks of the row in which some or all tokens attend to each other, found `ROWS` at a time.

        `create_block_mask` would make several tensors of T x T integers.
        """
        length, size, attends = len(self), len(self) // BLOCK, self.mask_mod()
        keys = torch.arange(length, device=self.enter.device)
        counts = [
            attends(None, None, rows[:, None], keys[None])
            .view(-1, BLOCK, size, BLOCK)
            .sum(dim=(1, 3), dtype=torch.int32)
            for rows in keys.split(ROWS)
        ]
        count = torch.cat(counts)[None, None]
        is_full = count == BLOCK**2
        return BlockMask.from_kv_blocks(
            *_listed((count > 0) & ~is_full),
            *_listed(is_full),
            BLOCK_SIZE=BLOCK,
            mask_mod=attends,
            seq_lengths=(length, length),
        )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of chosen columns of each row [..., n], and the columns, the chosen ones first."""
    order = chosen.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)


def flex_segments(
    segments: Segments,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    """Return the attention [1, H, T, D] of query [1, H, T, D] and of key and value, which may have fewer heads.

    The arguments are those of the attention inside segments. Blocks are found once for each window of a batch.
    """
    device = query.device
    blocks = segments.computed_once((window, device), lambda: RowMask.of(segments, window, device).blocks())
    if torch.is_autocast_enabled(device.type):
        query, key, value = (states.to(torch.get_autocast_dtype(device.type)) for states in (query, key, value))
    length, padding = query.shape[2], blocks.shape[-1] - query.shape[2]
    query, key, value = (F.pad(states, (0, 0, 0, padding)) for states in (query, key, value))

    output = _compiled()(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=blocks,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[:, :, :length]


def _capped(softcap: float) -> Callable[..., Tensor]:
    """Return the function of FlexAttention that caps scores, as in Gemma 2."""

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


@cache
def _compiled() -> Any:
    """Return the compiled FlexAttention. An error replaces its slow form, which makes all scores, in every case."""
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return torch._dynamo.config.patch(recompile_limit=COMPILED_SHAPES)(compiled)
