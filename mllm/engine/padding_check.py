"""Check that the states of a sample do not depend on the other samples of its batch and their padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from mllm.errors import ConfigError
from mllm.models.encoding.packing import LAYOUT
from mllm.protocols import Model
from mllm.structures import IGNORE, Batch, Encoded, Failure, LogicalBatch

TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1
"""Largest relative differences of states in fp32 and in half precision."""


@dataclass(frozen=True)
class PaddedPair:
    """Two samples of the training data, as a batch and one of them alone."""

    together: Batch
    """The second row is the shorter sample, with padding unless both have equal lengths."""
    alone: Batch
    """The shorter sample."""


def padded_pair(
    collate: Callable[[Sequence[Encoded]], LogicalBatch], updates: Iterable[Sequence[Encoded | Failure]]
) -> PaddedPair | None:
    """Return a long and a short sample of the first of some updates; None if batches have one sample or no padding.

    Args:
        collate: Collator of the run.
        updates: Samples of each update. The next one is read where those before it have samples of one length only.
    """
    equal: PaddedPair | None = None
    for items in updates:
        for longer, shorter in _pairs([item for item in items if isinstance(item, Encoded)]):
            pieces = collate([longer, shorter]).pieces
            if len(pieces) > 1 or LAYOUT in pieces[0].student:
                continue
            pair = PaddedPair(pieces[0], collate([shorter]).pieces[0])
            if longer.lengths != shorter.lengths:
                return pair
            equal = equal or pair
        if equal is None:
            return None
    return equal


def _pairs(samples: Sequence[Encoded]) -> Iterator[tuple[Encoded, Encoded]]:
    """Yield longer and shorter samples that can share a batch: first those with images, and of most unlike lengths."""
    for chosen in ([sample for sample in samples if sample.frames], samples):
        ordered = sorted(chosen, key=lambda one: (one.images_per_row, one.has_features, sum(one.lengths)))
        for _, group in groupby(ordered, key=lambda one: (one.images_per_row, one.has_features)):
            first, *others = group
            if others and (first.targets["labels"][1:] != IGNORE).any():
                yield from ((longer, first) for longer in (others[-1], others[0]))


@torch.no_grad()
def check_padding(student: Model, pair: PaddedPair, states_BLD: Tensor, rounds: bool) -> None:
    """Compare the states of a sample at its supervised positions in a padded batch with those that it has alone.

    This finds models whose positions count padding or scale with the longest sample of a batch, that assign images to
    other samples, or that mix the samples of a batch in another way.

    Args:
        student: The model.
        pair: The samples.
        states_BLD: States of `pair.together`.
        rounds: The model computes in half precision. Its rounding can change the experts of single tokens, so the
            median of the positions is compared, and not the largest difference.

    Raises:
        ConfigError: The states differ.
    """
    labels_L = pair.alone.targets["labels"][0]
    positions = (labels_L[1:] != IGNORE).nonzero().squeeze(1)
    alone = student(**pair.alone.student).hidden_BLD[0, positions].float()
    differences = (states_BLD[1, positions].float() - alone).norm(dim=-1) / alone.norm(dim=-1)
    difference = float(differences.median() if rounds else differences.max())
    if not difference <= (HALF_TOLERANCE if rounds else TOLERANCE):
        raise ConfigError(
            f"{type(student.pretrained).__name__} computes other states for a sample in a batch with a longer one than "
            f"for the sample alone (relative difference {difference:.2g}), so it would not learn what it is asked "
            "later: train with one sample per micro-batch (training_args.per_device_train_batch_size=1, "
            "gradient_accumulation_steps raised, data_args.tokens_per_micro_batch=None), or choose another architecture"
        )
