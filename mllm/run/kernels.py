"""Kernels that replace those of PyTorch, checked on the first batch of a training."""

from __future__ import annotations

import logging

from mllm.config.rules.attention import FLASH
from mllm.config.schema import RunConfig
from mllm.engine.exactness import Pass, agreement
from mllm.engine.trainer import MultimodalTrainer
from mllm.models.backbone.liger import use_liger_kernels
from mllm.structures import Batch, LogicalBatch

logger = logging.getLogger(__name__)


def use_kernels(config: RunConfig, trainer: MultimodalTrainer, batch: LogicalBatch, precision: str) -> None:
    """Turn on the kernels of Liger, and compare them and those of FlashAttention with PyTorch on the last micro-batch.

    Raises:
        ConfigError: Loss or gradients differ, or Liger has no kernels for the model.
    """
    uses_liger, attention = config.training_args["use_liger_kernel"], config.model_args.attn_implementation
    if attention is not None and FLASH not in attention:
        attention = None
    if not uses_liger and attention is None:
        return
    piece = batch.pieces[-1].to(trainer.args.device)
    if uses_liger:
        origin = config.origin("training_args", "use_liger_kernel")
        expected = _pass(trainer, piece).on_host()
        names = use_liger_kernels(trainer.learner.student.pretrained, trainer.args.device.type)
        found = agreement(_pass(trainer, piece), expected, precision, f"{origin}: use_liger_kernel=True")
        logger.info("kernels of Liger for %s: %s", ", ".join(names), found)
    if attention is not None:
        compare_attention(config, trainer, piece, precision, attention)


def compare_attention(config: RunConfig, trainer: MultimodalTrainer, piece: Batch, precision: str, name: str) -> None:
    """Compare the attention of the language model with SDPA. Raise `ConfigError` if loss or gradients differ."""
    language = trainer.learner.student.pretrained.config.get_text_config(decoder=True)
    language._attn_implementation = "sdpa"
    try:
        expected = _pass(trainer, piece).on_host()
    finally:
        language._attn_implementation = name
    found = _pass(trainer, piece)
    key = f"{config.origin('model_args', 'attn_implementation')}: attn_implementation='{name}'"
    logger.info("attention by %s, compared with SDPA: %s", name, agreement(found, expected, precision, key))


def _pass(trainer: MultimodalTrainer, piece: Batch) -> Pass:
    return Pass.of(trainer.learner, piece, trainer.autocast)
