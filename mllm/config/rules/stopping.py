"""Rules for early stopping, which needs a validation loss."""

from __future__ import annotations

from mllm.config.schema import RunConfig
from mllm.errors import ConfigError


def refuse_stopping_without_validation(config: RunConfig) -> None:
    """Raise `ConfigError` for early stopping without a validation loss, and for a threshold without early stopping."""
    training = config.training_args
    patience, threshold = training["early_stopping_patience"], training["early_stopping_threshold"]
    if patience is None:
        if threshold:
            raise ConfigError(
                f"{config.origin('training_args', 'early_stopping_threshold')}: early_stopping_threshold={threshold} "
                "has no effect without early_stopping_patience: set that too, or remove it"
            )
        return
    origin = config.origin("training_args", "early_stopping_patience")
    if config.data_args.validation is None:
        raise ConfigError(
            f"{origin}: early_stopping_patience={patience} needs a validation loss, and data_args.validation is None: "
            "set a validation split, or remove it"
        )
    if training["eval_strategy"] == "no":
        raise ConfigError(
            f"{origin}: early_stopping_patience={patience} needs a validation loss, and eval_strategy='no' computes "
            "none: set it to 'epoch', or to 'steps' with eval_steps"
        )
