"""Rules for `training_args`: updates, unused arguments, gradient checkpointing."""

from __future__ import annotations

import logging

from mllm.config.schema import RunConfig
from mllm.errors import ConfigError

logger = logging.getLogger(__name__)

UNUSED = (
    *("label_smoothing_factor", "neftune_noise_alpha", "use_liger_kernel", "torch_empty_cache_steps"),
    *("auto_find_batch_size", "train_sampling_strategy", "include_num_input_tokens_seen"),
)
"""Arguments that Trainer reads only in code that a Learner replaces."""


def refuse_no_updates(config: RunConfig) -> None:
    """Raise `ConfigError` for a training without updates, whose adapter would change nothing."""
    args = config.training_args
    steps = args["max_steps"]
    if steps == 0 or steps < -1:
        raise ConfigError(
            f"{config.origin('training_args', 'max_steps')}: max_steps={steps} trains nothing: set it to at least 1, "
            f"or to -1 for num_train_epochs={args['num_train_epochs']}"
        )
    if args["learning_rate"] == 0:
        origin = config.origin("training_args", "learning_rate")
        raise ConfigError(f"{origin}: learning_rate=0 trains nothing: set it above 0, to 1e-4 for example")
    if steps < 0 and args["num_train_epochs"] <= 0:
        raise ConfigError(
            f"{config.origin('training_args', 'num_train_epochs')}: num_train_epochs={args['num_train_epochs']} trains "
            f"nothing: set it above 0, or max_steps to at least 1"
        )


def refuse_unused_arguments(config: RunConfig) -> None:
    """Raise `ConfigError` for arguments of Trainer's own loss, batches and model, which a Learner replaces."""
    for key in UNUSED:
        value = config.training_args[key]
        if value not in (None, False, 0, "no", "random"):
            raise ConfigError(
                f"{config.origin('training_args', key)}: {key}={value!r} has no effect, because objectives compute "
                f"the loss and the sampler makes the batches: remove it"
            )


def adapt_checkpointing(config: RunConfig) -> RunConfig:
    """Make gradient checkpointing non-reentrant; the reentrant kind loses gradients if inputs require none."""
    for name in ("gradient_checkpointing", "activation_checkpointing"):  # transformers is renaming it
        options = config.training_args.get(f"{name}_kwargs") or {}
        if config.training_args.get(name) and options.get("use_reentrant") is not False:
            logger.info("gradient checkpointing: use_reentrant is set to False")
            config = config.replaced(**{f"training_args.{name}_kwargs": {**options, "use_reentrant": False}})
    return config
