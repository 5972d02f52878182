"""Evaluations in which the tokens of an image are computed once for all questions about it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from mllm.config.rules.sharing import ANSWERED, IMAGE_BLOCKS
from mllm.config.schema import RunConfig
from mllm.dataset.base import SampleDataset
from mllm.dataset.loading.sharing import image_groups
from mllm.engine.answering import Answerer
from mllm.models.backbone.segment_attention import NAME
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.language_model import LanguageModel
from mllm.protocols import Bundle

logger = logging.getLogger(__name__)
ATTENTION = ("sdpa", NAME)
"""Attention implementations that the attention inside segments can replace."""


def share_test_images(config: RunConfig, bundle: Bundle) -> None:
    """Let the questions of an evaluation share the tokens of their images, if that is exact. Else log the reason."""
    is_off = not config.data_args.gen_kwargs.get("share_images", True)
    reason = "data_args.gen_kwargs.share_images is False" if is_off else share_images(bundle)
    if reason is not None and bundle.model.generates_text and bundle.encoder.image_token_ids:
        logger.info("the tokens of an image are computed for each question about it, because %s", reason)


def share_images(bundle: Bundle) -> str | None:
    """Let questions about equal images share their first tokens. Return the reason if that is not exact."""
    model, encoder = bundle.model, bundle.encoder
    if not isinstance(model, LanguageModel) or not isinstance(encoder, ChatEncoder) or not encoder.image_token_ids:
        return "the model does not answer questions about images"
    if model.heads:
        return "heads read the states of the image"
    kind = model.pretrained.config.model_type
    if kind not in ANSWERED:
        return f"sharing them has not been tested with '{kind}' models"
    attention = model.pretrained.config.get_text_config(decoder=True)._attn_implementation
    if attention not in ATTENTION:
        return f"the attention of the model is '{attention}', not 'sdpa'"
    encoder.shares_images = True
    model.share_tokens(image_blocks=kind in IMAGE_BLOCKS)
    return None


@contextmanager
def sharing_restored(bundle: Bundle) -> Iterator[None]:
    """Restore after the block if samples have digests of their images, which training needs only to share them."""
    encoder = bundle.encoder
    before = isinstance(encoder, ChatEncoder) and encoder.shares_images
    try:
        yield
    finally:
        if isinstance(encoder, ChatEncoder):
            encoder.shares_images = before


def question_groups(answerer: Answerer, split: SampleDataset, repeats: int = 1) -> np.ndarray | None:
    """Return the number of the images of each row that is answered, [N], by which rows are answered together.

    Args:
        answerer: Source of the answers.
        split: The split.
        repeats: Number of times that all rows of the split are answered, each time by another model.

    Returns:
        None if the answerer does not share images, or all rows have images of their own.
    """
    if not answerer.shares_images:
        return None
    groups = image_groups(split)
    sizes = np.bincount(groups)
    shared = sizes[sizes > 1]
    if not len(shared):
        return None
    logger.info(
        "%d of %d questions share their images with another question; the tokens of these %d images or series are "
        "computed once",
        *(shared.sum(), len(groups), len(shared)),
    )
    return (groups[None] + np.arange(repeats)[:, None] * len(sizes)).ravel()
