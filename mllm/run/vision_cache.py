"""Features of the images of a training run, stored before the first update."""

from __future__ import annotations

import torch
from accelerate import PartialState

from mllm.config.hardware import Hardware
from mllm.config.schema import RunConfig
from mllm.dataset.checking import Splits
from mllm.predict.stored_features import is_possible, share_of_rows, store_features
from mllm.protocols import Bundle
from mllm.run.data import training_draws


def store_training_features(
    config: RunConfig, hardware: Hardware, bundle: Bundle, splits: Splits, updates: int
) -> None:
    """Store the features of the images of training and validation, and let the encoder read them.

    The vision tower runs in every update, and the log says why, if features would not be the same in all of them.

    Args:
        config: The config.
        hardware: The hardware, with the precision of the training.
        bundle: Model and encoder.
        splits: The splits.
        updates: Number of updates of the run.
    """
    if not is_possible(config, bundle, splits.get("train")):
        return
    draws, names = training_draws(config, splits["train"], updates), "train"
    if "validation" in splits and config.training_args["eval_strategy"] != "no":
        draws = [*draws, *share_of_rows(splits["validation"])]
        names = "train and validation"
    device = PartialState().device.type
    precision = torch.autocast(device, torch.bfloat16, enabled=hardware.precision == "bf16")
    store_features(config, bundle, draws, precision, names)
