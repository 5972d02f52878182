"""Count of the samples that `max_length` cuts, before the training."""

from __future__ import annotations

import logging

from accelerate import PartialState

from mllm.config.schema import RunConfig
from mllm.dataset.base import SampleDataset
from mllm.errors import UserError
from mllm.protocols import SampleEncoder

logger = logging.getLogger(__name__)

MAX_ROWS = 16
"""Maximum number of evenly spaced rows of the training split that are encoded for the count."""


def warn_of_cut_samples(config: RunConfig, encoder: SampleEncoder, train: SampleDataset) -> None:
    """Log how many of the first epoch's samples are cut at `max_length`, on the first process only.

    At most `MAX_ROWS` rows are encoded. Rows that cannot be read are left out; they are reported elsewhere. A private
    run logs nothing, because the count reveals something about its rows.
    """
    if not PartialState().is_main_process or config.privacy_args is not None:
        return
    count = min(len(train), MAX_ROWS)
    truncated = encoded = 0
    for number in range(count):
        try:
            truncated += encoder.encode(train.sample(number * len(train) // count)).truncated
        except UserError:
            continue
        encoded += 1
    if truncated:
        logger.warning(
            "%d of %d encoded samples of the training split are longer than max_length, and the ends of their answers "
            "are cut: raise model_args.max_length (%d), or shorten the texts",
            *(truncated, encoded, config.model_args.max_length),
        )
