"""Outputs of the processors of transformers: the unit of each output, and the joining of several samples.

The unit (token, image or sample) does not follow from the shape. A 1-D tensor may have one value per token or per
image, and the first dimension of Mllama's mask are tokens, although it is about images. So every output is declared
here by its name, and other names are refused: an output that is joined wrongly would change the input of the model
without an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mllm.errors import ConfigError
from mllm.models.encoding.padding import joined_images, stacked

TOKENS: Mapping[str, int] = {
    "input_ids": 0,
    "attention_mask": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "moe_mm_token_type_ids": 0,
    "cross_attention_mask": 0,
}
"""Outputs with one entry per token [1, L, ...], and their value at padding. The encoder replaces that of `input_ids`.

Mllama's `cross_attention_mask` [1, L, images, tiles] marks the tiles that a token attends to.
"""
IMAGES: Mapping[str, int] = {
    **dict.fromkeys(("pixel_values", "pixel_values_local", "high_res_pixel_values", "pixel_values_images"), 0),
    **dict.fromkeys(("pixel_attention_mask", "pixel_mask", "tile_fine_mask"), 0),
    **dict.fromkeys(("image_sizes", "image_grid_thw", "image_grid_hw", "image_merge_sizes", "spatial_shapes"), 0),
    **dict.fromkeys(("batch_num_images", "num_local_patches", "patches_grid", "target_sizes"), 0),
    "image_position_ids": -1,
}
"""Outputs with one entry per image, tile or patch, and the value with which smaller images are padded.

The entries of a batch are those of its samples in order. A sample without images has none.
"""
PATCH_ROWS = "target_sizes"
"""Size of each tile in patches. With it `pixel_values` [1, 3, patch, length] have the patches of all tiles in their
last dimension (MiniCPM-V)."""
SAMPLES = frozenset({"aspect_ratio_ids", "aspect_ratio_mask"})
"""Outputs with one entry per sample and image [1, images, ...]: Mllama finds the images of a sample by its row.

With them `pixel_values` have this form, too. Samples with different numbers of images cannot share a batch: tokens
before the first image would attend to the padding (`MllamaCrossAttentionDecoderLayer` does not mask their attention).
"""
LABELS = "labels"
"""Labels of the processor itself (PaliGemma). The encoder sets its own."""


def selected(outputs: Mapping[str, Any], mask: Tensor, processor: str) -> dict[str, Tensor]:
    """Return the outputs for one text without their batch dimension, at the tokens of a mask [L].

    Args:
        outputs: Outputs of a processor for one text [1, L] and its images.
        mask: Tokens that are selected.
        processor: Name of the processor, for messages.

    Raises:
        ConfigError: An output is not declared in this module, or an output of tokens has another length.
    """
    chosen = {}
    for name, value in outputs.items():
        if name == LABELS:
            continue
        if name not in TOKENS and name not in IMAGES and name not in SAMPLES:
            raise ConfigError.without_values(
                f"{processor} returns '{name}', and it is not known whether this belongs to a token, an image or a "
                "sample: this architecture is not supported; choose a checkpoint of another one"
            )
        tensor = torch.as_tensor(value)
        if name in TOKENS:
            if tensor.shape[:2] != (1, len(mask)):
                raise ConfigError.without_values(
                    f"{processor} returns '{name}' of shape {list(tensor.shape)} for {len(mask)} tokens: this "
                    "architecture is not supported; choose a checkpoint of another one"
                )
            tensor = tensor[0][mask]
        chosen[name] = tensor
    return chosen


def cut(outputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Return the outputs of a sample with its first `length` tokens."""
    return {name: tensor[:length] if name in TOKENS else tensor for name, tensor in outputs.items()}


def text_of(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a sample with one entry per token."""
    return {name: tensor for name, tensor in outputs.items() if name in TOKENS}


def images_per_row(outputs: Mapping[str, Tensor]) -> int:
    """Return the number of images in the rows of `SAMPLES`, which the samples of a batch must share. 0: none."""
    return next((outputs[name].shape[1] for name in sorted(SAMPLES) if name in outputs), 0)


def joined(samples: Sequence[Mapping[str, Tensor]], pad_id: int, side: str) -> dict[str, Tensor]:
    """Return the outputs of a batch: those of tokens are padded on `side` and stacked, others are concatenated."""
    length = max(len(sample["input_ids"]) for sample in samples)
    batch = {}
    for name in {name: None for sample in samples for name in sample}:
        tensors = [sample[name] for sample in samples if name in sample]
        if name in TOKENS:
            assert len(tensors) == len(samples), f"a sample without {name}"
            batch[name] = stacked(tensors, length, pad_id if name == "input_ids" else TOKENS[name], side)
        else:
            assert name not in SAMPLES or len(tensors) == len(samples), f"a sample without {name}"
            in_row = name == "pixel_values" and any(PATCH_ROWS in sample for sample in samples)
            batch[name] = torch.cat(tensors, dim=-1) if in_row else joined_images(tensors, IMAGES.get(name, 0))
    return batch
