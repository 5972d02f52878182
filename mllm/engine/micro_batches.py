"""Micro-batches whose size is found during the training: it is halved when memory runs out."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from mllm.errors import DataError
from mllm.files import write_json
from mllm.protocols import Collator
from mllm.structures import Encoded, Failure, LogicalBatch

logger = logging.getLogger(__name__)
KEY = "tokens_per_micro_batch"


class MicroBatches:
    """Collator of logical batches with a number of tokens per micro-batch that is halved when memory runs out.

    The numbers are recorded in a file with the update from which they apply, so that a resumed run divides each update
    as the interrupted run did, and its results stay equal bit for bit.

    Args:
        collate: Collator of the run. It starts without a limit of tokens.
        path: File of the record, in the run folder.

    Raises:
        DataError: The file is damaged.
    """

    def __init__(self, collate: Collator, path: Path) -> None:
        self.collate, self.path = collate, path
        self.limits = _read(path)
        """First update, from 0, and maximum number of tokens of its micro-batches and of those after it."""

    def __call__(self, items: Sequence[Encoded | Failure], update: int | None = None) -> LogicalBatch:
        """Return the logical batch of an update, from 0, with the limit of that update; None: the smallest one."""
        limits = [tokens for first, tokens in self.limits if update is None or first <= update]
        self.collate.tokens_per_piece = min(limits, default=None)
        return self.collate(items)

    def halve(self, items: Sequence[Encoded | Failure], update: int) -> LogicalBatch | None:
        """Return the logical batch in more and smaller micro-batches; None if each has one row already.

        The limit of tokens is halved until the number of micro-batches grows. It applies from this update on.
        """
        batch = self(items, update)
        limit = min(self.collate.tokens_per_piece or batch.padded_tokens, batch.padded_tokens)
        smaller, tokens = batch, limit
        while tokens > 1 and len(smaller.pieces) == len(batch.pieces):
            tokens //= 2
            self.collate.tokens_per_piece = tokens
            smaller = self.collate(items)
        if len(smaller.pieces) == len(batch.pieces):
            return None
        self.limits.append((update, tokens))
        write_json(self.path, [{"update": first, KEY: number} for first, number in self.limits])
        logger.warning(
            "out of memory at step %d in micro-batches of up to %d tokens: they have at most %d tokens from now on, "
            "and the update is computed again. %s=%d starts with this size",
            *(update + 1, limit, tokens, f"data_args.{KEY}", tokens),
        )
        return smaller


def release_memory() -> None:
    """Return the memory of a failed forward or backward pass to the device, after its exception was handled."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _read(path: Path) -> list[tuple[int, int]]:
    if not path.is_file():
        return []
    try:
        return [(int(row["update"]), int(row[KEY])) for row in json.loads(path.read_text())]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: remove it, and the size of micro-batches is found again") from error
