"""Computation of the features of images, which the language model reads in place of pixels."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mllm.errors import is_out_of_memory
from mllm.models.encoding.image_features import PIXELS, compute_features, with_features
from mllm.models.language_model import LanguageModel
from mllm.protocols import Bundle, Model
from mllm.structures import Encoded

TOLERANCE = 1e-4
"""Largest relative difference of hidden states from features and from pixels; on a CPU they are equal bit for bit."""


def accepts_features(model: Model) -> bool:
    """Return True if the model of transformers has an argument for features of images, and no head reads the tower."""
    pretrained: Any = model.pretrained
    accepts = "mm_encoder_outputs" in inspect.signature(pretrained.forward).parameters
    return isinstance(model, LanguageModel) and accepts and model.layers is None


class FeatureComputer:
    """Vision tower and projector of a model, whose features of images are compared with pixels once.

    Args:
        bundle: Model and encoder.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.model, self.encoder = bundle.model, bundle.encoder
        self.is_refused = not accepts_features(bundle.model)
        """True if the model does not compute the same from features as from pixels."""
        self._is_compared = False

    @torch.no_grad()
    def features(self, encoded: Encoded) -> dict[str, Tensor] | None:
        """Return the features of the images of one sample; None if the model must read their pixels."""
        if self.is_refused or encoded.has_features or not PIXELS & encoded.student.keys():
            return None
        if not self._is_compared:
            self._is_compared, self.is_refused = True, not self._agrees(encoded)
        return None if self.is_refused else self._computed(encoded)

    def _computed(self, encoded: Encoded) -> dict[str, Tensor]:
        return compute_features(self.model.pretrained, encoded.student)

    def _agrees(self, encoded: Encoded) -> bool:
        """Return True if the states of the language model are the same from features as from pixels."""
        from_pixels = self._states(encoded)
        try:
            student = with_features(encoded.student, self._computed(encoded))
            from_features = self._states(replace(encoded, student=student, has_features=True))
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            return False  # models of transformers differ in the form of their features
        return torch.allclose(from_pixels, from_features, rtol=0, atol=TOLERANCE * float(from_pixels.abs().max()))

    def _states(self, encoded: Encoded) -> Tensor:
        """Return the last hidden states of a sample [1, L, D] in fp32."""
        batch = self.encoder.pad([encoded]).to(self.model.pretrained.device)
        hidden: Tensor = self.model(**batch.student).hidden_BLD
        return hidden.float()
