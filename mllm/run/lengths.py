"""Checks of encoded rows before the training: rows that the encoder refuses, and samples that `max_length` cuts."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from accelerate import PartialState

from mllm.config.schema import RunConfig
from mllm.dataset.base import SampleDataset
from mllm.dataset.checking import Splits
from mllm.errors import UserError, advised
from mllm.private_messages import error_of, in_row, sentence_of
from mllm.protocols import Encoder, SampleEncoder

logger = logging.getLogger(__name__)

MAX_ROWS = 16
"""Maximum number of evenly spaced rows of a split that are encoded for the count."""


def refuse_unusable_texts(config: RunConfig, encoder: Encoder, splits: Splits) -> None:
    """Encode the longest rows, and those with texts in the form of a special token, as the training will.

    Only the encoder knows the special tokens of a model and the length of a text in tokens, so the check of all rows
    does not find these faults. The question alone is encoded of the rows of the test split.

    Raises:
        DataError: A row cannot be encoded, unless unusable rows are skipped.
    """
    if config.data_args.on_error == "skip":
        return
    for name, report in splits.reports.items():
        encode = encoder.prompt if name == "test" else encoder.encode
        for row in dict.fromkeys((*report.token_like.values(), *report.longest)):
            with in_row(name, row.number):
                try:
                    encode(row.source.sample(row.index))
                except UserError as error:
                    raise error_of(advised(sentence_of(error))) from error


def warn_of_cut_samples(config: RunConfig, encoder: SampleEncoder, splits: Splits) -> None:
    """Log how many samples of the training and the validation split are cut at `max_length`, on the first process only.

    At most `MAX_ROWS` evenly spaced rows and the rows with the longest texts are encoded. Rows that cannot be read are
    left out; they are reported elsewhere. A private run logs nothing, because the count reveals something about its
    rows.
    """
    if not PartialState().is_main_process or config.privacy_args is not None:
        return
    for name in ("train", "validation"):
        if name not in splits:
            continue
        split = splits[name]
        count = min(len(split), MAX_ROWS)
        spaced = [(split, number * len(split) // count) for number in range(count)]
        longest = [(row.source, row.index) for row in splits.reports[name].longest]
        counts = [_count_cut(encoder, rows) for rows in (spaced, longest)]
        if any(cut for cut, _ in counts):
            logger.warning(
                "samples of the %s split are longer than max_length (%d of %d evenly spaced rows, %d of the %d "
                "longest), and the ends of their answers are cut: raise model_args.max_length (%d), or shorten the "
                "texts",
                "training" if name == "train" else name,
                *(number for pair in counts for number in pair),
                config.model_args.max_length,
            )


def _count_cut(encoder: SampleEncoder, rows: Iterable[tuple[SampleDataset, int]]) -> tuple[int, int]:
    """Return the number of rows that are cut, and of those that could be encoded."""
    cut = encoded = 0
    for dataset, index in rows:
        try:
            cut += encoder.encode(dataset.sample(index)).truncated
        except UserError:
            continue
        encoded += 1
    return cut, encoded
