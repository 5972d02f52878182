"""Check that padding before a prompt does not change its answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig, PreTrainedModel

from mllm.models.backbone.model_errors import explained_model_errors
from mllm.models.encoding.image_features import backbone_inputs
from mllm.models.encoding.text_encoder import TextEncoder
from mllm.models.generation.checkpoint_settings import without_checkpoint_settings
from mllm.structures import Encoded

logger = logging.getLogger(__name__)

TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1
"""Root mean square differences of logits in fp32 and in half precision, in standard deviations of the logits, that are
taken for rounding."""
_results: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def needs_equal_lengths(model: PreTrainedModel, encoder: TextEncoder, prompts: Sequence[Encoded]) -> bool:
    """Return True if the prompts of a batch must have equal lengths: padding before a prompt changes its answer.

    transformers gives most models the position of each token after the padding. Some count padding (BART as a decoder,
    GIT), or compress keys of several tokens from the start of the row into one (DeepSeek V4). So a prompt is tried
    once, alone and beside a longer one. An encoder-decoder has its padding at the end.
    """
    if model.config.is_encoder_decoder:
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
    """Return True if padding in front of a short prompt changes the logits of the first two tokens of its answer.

    The first token is computed with the prompt, the second one from the cache. It is compared if the first is equal.
    """
    alone, padded = (
        _first_logits(model, encoder.pad(prompts, side="left").to(model.device).student)
        for prompts in ([short], [short, longer])
    )
    tolerance = TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE
    for one, other in zip(alone, padded, strict=False):
        if (other - one).norm() > tolerance * (one - one.mean()).norm():
            return True
        if one.argmax() != other.argmax():
            return False
    return False


def _first_logits(model: Any, student: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the logits of the first two generated tokens of the first sample, each [vocabulary], in fp32."""
    options = GenerationConfig(max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True)
    inputs = backbone_inputs({name: tensor for name, tensor in student.items() if not name.startswith("object_")})
    explained = explained_model_errors(model, "while it generates an answer", "cannot answer")
    with explained, without_checkpoint_settings(model):
        logits = model.generate(**inputs, generation_config=options, synced_gpus=False).logits
    return [logits_BV[0].float() for logits_BV in logits]
