"""Choice of the attention of rows with several samples, at the start of a run."""

from __future__ import annotations

import logging

import torch

from mllm.config.hardware import Hardware
from mllm.config.rules.attention import FLEX
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError
from mllm.models.backbone.flex_check import limit_of, reason_against_flex
from mllm.models.backbone.flex_segments import flex_segments
from mllm.models.backbone.segment_attention import RowAttention
from mllm.models.language_model import LanguageModel

logger = logging.getLogger(__name__)


def attention_of_rows(config: RunConfig, hardware: Hardware, model: LanguageModel) -> RowAttention | None:
    """Return the attention of the rows of a training, None for SDPA, and log the reason. A plan has SDPA.

    Raises:
        ConfigError: `attn_implementation` asks for FlexAttention, which cannot be used on this GPU.
    """
    requested = config.model_args.attn_implementation
    if hardware.device == "planned":
        return None
    if requested == "sdpa":
        logger.info("attention of rows: SDPA, because model_args.attn_implementation is 'sdpa'")
        return None
    # In fp16 the tensors between layers are fp32, and in bf16 autocast computes attention.
    dtype = torch.bfloat16 if hardware.precision == "bf16" else torch.float32
    language = model.pretrained.config.get_text_config(decoder=True)
    reason = reason_against_flex(language, hardware.device, hardware.capability, dtype)
    if reason is None:
        logger.info(
            "attention of rows: FlexAttention, because its outputs and gradients are those of SDPA on this GPU "
            "(relative differences up to %g)",
            limit_of(dtype),
        )
        return flex_segments
    if requested == FLEX and hardware.device == "cuda":
        origin = config.origin("model_args", "attn_implementation")
        raise ConfigError(f"{origin}: attn_implementation='{FLEX}' cannot be used, because {reason}: remove it")
    logger.info("attention of rows: SDPA, because %s", reason)
    return None
