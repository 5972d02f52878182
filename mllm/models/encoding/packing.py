"""Layout of several samples in one row: each attends to itself and to the tokens that it shares, from position 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mllm.structures import Batch, Encoded, OnHost

LAYOUT = "row_layout"
"""Key of the `RowLayout` in the inputs of a batch of one row."""


@dataclass(frozen=True)
class RowLayout(OnHost):
    """Arrangement of samples in a row. It stays in host memory: to read it from a GPU, an update would wait for it."""

    leaders: tuple[int, ...]
    """Index of the sample whose first tokens each sample shares. A sample that shares nothing is its own leader. A
    leader precedes its followers."""
    shared: tuple[int, ...]
    """Number of tokens that each sample shares with its leader; of a leader, it is not read."""
    lengths: tuple[int, ...]
    """Number of tokens of each sample."""
    blocks: tuple[tuple[tuple[int, int], ...], ...]
    """Start and end in each sample of the runs of image tokens, if the model marks them."""

    @classmethod
    def of(cls, samples: Sequence[Encoded], leaders: Sequence[int], shared: Sequence[int]) -> RowLayout:
        """Return the layout of samples that are not yet padded."""
        types = [sample.student.get("token_type_ids") for sample in samples]
        return cls(
            tuple(leaders),
            tuple(shared),
            tuple(len(sample.student["input_ids"]) for sample in samples),
            tuple(() if own is None else _runs_of_ones(own.tolist()) for own in types),
        )

    @property
    def has_shared_tokens(self) -> bool:
        """Return True if a sample shares tokens with another one."""
        return any(leader != index for index, leader in enumerate(self.leaders))


def packing(pad: Callable[[Sequence[Encoded]], Batch]) -> Callable[..., Batch]:
    """Return a function of samples, their leaders and their shared tokens, whose batch is one row.

    Args:
        pad: Function that pads samples.
    """

    def padded(samples: Sequence[Encoded], leaders: Sequence[int], shared: Sequence[int]) -> Batch:
        assert list(leaders) == list(range(len(samples))), "these samples share no tokens"
        batch = pad(samples)
        return replace(batch, student=batch.student | {LAYOUT: RowLayout.of(samples, leaders, shared)})

    return padded


def followers(student: Mapping[str, Any]) -> Tensor:
    """Return a mask [B] of the samples that follow another one in a row, and could attend to it by mistake."""
    follows = torch.ones(len(student["input_ids"]), dtype=torch.bool, device=student["input_ids"].device)
    follows[0] = False
    return follows & (LAYOUT in student)


def row_lengths(student: Mapping[str, Any]) -> list[int] | None:
    """Return the number of tokens of each sample of a row without shared tokens; None: the samples are padded."""
    layout = student.get(LAYOUT)
    if layout is None:
        return None
    assert not layout.has_shared_tokens, "a shared token belongs to several samples"
    return list(layout.lengths)


def _runs_of_ones(types: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return start and end of the runs of ones."""
    blocks, start = [], None
    for index, kind in enumerate([*types, 0]):
        if kind and start is None:
            start = index
        elif not kind and start is not None:
            blocks.append((start, index))
            start = None
    return tuple(blocks)
