"""Features of images in the inputs of a model, which the vision tower computed before and stored."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

PREFIX = "image_features."
"""Beginning of the names of features in a batch."""
POOLED, LISTED, LAYER = f"{PREFIX}pooled", f"{PREFIX}listed", f"{PREFIX}layer_"
"""Names of features. `POOLED`: one tensor of N images [N, T, D]. `LISTED`: the tokens of all images [T, D], which the
model returns in a list of one tensor per image. `LAYER` and a number: an inner layer [T, D] of the tower (Qwen3-VL)."""
PIXELS = frozenset(
    {
        *("pixel_values", "pixel_values_local", "high_res_pixel_values", "pixel_values_images"),
        *("pixel_attention_mask", "pixel_mask", "tile_fine_mask"),
    }
)
"""Outputs of processors that only the vision tower reads. Others, such as `image_grid_thw`, give positions as well."""


class FeatureReader(Protocol):
    """Reader of stored features."""

    def read(self, images: Sequence[Image]) -> dict[str, Tensor] | None:
        """Return the features of the images of a sample, in their order; None if they are not stored."""


def named_features(outputs: Any) -> dict[str, Tensor]:
    """Return the outputs of `get_image_features` for the images of one sample as named tensors.

    Raises:
        TypeError: The outputs have another form than those of the models of transformers that were tried.
    """
    pooled = outputs.pooler_output
    features = {POOLED: pooled} if isinstance(pooled, Tensor) else {LISTED: _joined(pooled)}
    layers = dict(outputs).get("deepstack_features") or ()
    return features | {f"{LAYER}{number}": _joined(layer) for number, layer in enumerate(layers)}


def _joined(items: Any) -> Tensor:
    """Return the tokens of all images [T, D] from a list of tensors [..., D] of images."""
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, Tensor) for item in items):
        raise TypeError(f"features of images of type {type(items).__name__}")
    return torch.cat([item.reshape(-1, item.shape[-1]) for item in items])


def compute_features(model: Any, student: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the features of the images in the inputs of a model of transformers, computed from their pixels."""
    encode = model.base_model.get_image_features
    names = inspect.signature(encode).parameters
    inputs = {name: tensor.to(model.device) for name, tensor in student.items() if name in names}
    return named_features(encode(**inputs, return_dict=True))


def cut_features(features: Mapping[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    """Return the features of some image tokens, counted over all images."""
    flat = {name: tensor.flatten(0, -2)[start:end] for name, tensor in features.items()}
    return {name: tensor.view(-1, *features[name].shape[1:]) for name, tensor in flat.items()}


def with_features(student: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs of a sample with the features of its images instead of their pixels."""
    return {name: tensor for name, tensor in student.items() if name not in PIXELS} | dict(features)


def backbone_inputs(student: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the keyword arguments of the backbone: features become `mm_encoder_outputs`, which skips the tower."""
    inputs: dict[str, Any] = {name: tensor for name, tensor in student.items() if not name.startswith(PREFIX)}
    if len(inputs) == len(student):
        return inputs
    outputs = BaseModelOutputWithPooling(pooler_output=student.get(POOLED))
    if LISTED in student:
        outputs["pooler_output"] = [student[LISTED]]
    layers = [name for name in student if name.startswith(LAYER)]
    if layers:
        outputs["deepstack_features"] = [[student[f"{LAYER}{number}"]] for number in range(len(layers))]
    return {**inputs, "mm_encoder_outputs": {"image": outputs}}
