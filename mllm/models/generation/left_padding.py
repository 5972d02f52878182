"""Check that padding before a prompt does not change its answer."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig, PreTrainedModel

from mllm.models.encoding.image_features import backbone_inputs
from mllm.models.encoding.text_encoder import TextEncoder
from mllm.structures import Encoded

logger = logging.getLogger(__name__)

TOLERANCE = 0.1
"""Largest difference of logits, in standard deviations of the logits, that is taken for rounding."""
_results: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def needs_equal_lengths(model: PreTrainedModel, encoder: TextEncoder, prompts: Sequence[Encoded]) -> bool:
    """Return True if the prompts of a batch must have equal lengths, because padding before a prompt moves its tokens.

    transformers gives the position of each token to models that read `position_ids`. Some others count padding (BART as
    a decoder), some read positions from the mask (BLOOM) or have none (Mamba). Models that compress keys of several
    tokens into one (DeepSeek V4) count tokens from the start of the row. Both are tried once, on two prompts.
    """
    reads_positions = "position_ids" in inspect.signature(model.forward).parameters
    compresses = any("compress" in key for key in model.config.get_text_config(decoder=True).to_dict())
    if model.config.is_encoder_decoder or (reads_positions and not compresses):
        return False
    if model not in _results:
        by_length = sorted(prompts, key=len)
        short = by_length[0]
        longer = next((one for one in by_length if len(one) > len(short) and is_alike(one, short)), None)
        if longer is None:
            return False
        _results[model] = _changes(model, encoder, short, longer)
        if _results[model]:
            logger.info("%s counts padding as tokens: batches have prompts of equal length", type(model).__name__)
    return _results[model]


def is_alike(one: Encoded, other: Encoded) -> bool:
    """Return True if two prompts can be in one batch."""
    return (one.images_per_row, one.has_features) == (other.images_per_row, other.has_features)


def _changes(model: PreTrainedModel, encoder: TextEncoder, short: Encoded, longer: Encoded) -> bool:
    """Return True if padding in front of a short prompt changes the logits of the first token of its answer."""
    alone, padded = (
        _first_logits(model, encoder.pad(prompts, side="left").to(model.device).student)
        for prompts in ([short], [short, longer])
    )
    return bool((padded - alone).abs().max() > TOLERANCE * alone.std())


def _first_logits(model: Any, student: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits of the first generated token of the first sample [vocabulary], in fp32."""
    options = GenerationConfig(max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True)
    logits: torch.Tensor = model.generate(**backbone_inputs(student), generation_config=options).logits[0][0]
    return logits.float()
