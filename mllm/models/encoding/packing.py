"""Layout of several samples in one row: each attends to itself and to the tokens that it shares, from position 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mllm.structures import Batch, Encoded

LEADER, SHARED = "shared_leader", "shared_tokens"
"""Keys of tensors [B] in a batch of one row: index of the sample whose first tokens a sample shares, and their number.
A sample that shares nothing is its own leader. A leader precedes its followers."""


def packing(pad: Callable[[Sequence[Encoded]], Batch]) -> Callable[..., Batch]:
    """Return a function of samples, their leaders and their shared tokens, whose batch is one row.

    Args:
        pad: Function that pads samples.
    """

    def padded(samples: Sequence[Encoded], leaders: Sequence[int], shared: Sequence[int]) -> Batch:
        assert list(leaders) == list(range(len(samples))), "these samples share no tokens"
        batch = pad(samples)
        layout = {LEADER: torch.tensor(leaders), SHARED: torch.tensor(shared)}
        return replace(batch, student=batch.student | layout)

    return padded


def followers(student: dict[str, Tensor]) -> Tensor:
    """Return a mask [B] of the samples that follow another one in a row, and could attend to it by mistake."""
    follows = torch.ones(len(student["input_ids"]), dtype=torch.bool, device=student["input_ids"].device)
    follows[0] = False
    return follows & (LEADER in student)


def row_lengths(student: dict[str, Tensor]) -> list[int] | None:
    """Return the number of tokens of each sample of a row without shared tokens; None: the samples are padded."""
    if LEADER not in student:
        return None
    assert not student[SHARED].any(), "a shared token belongs to several samples"
    lengths: list[int] = student["attention_mask"].sum(dim=1).tolist()
    return lengths
