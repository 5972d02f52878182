"""Base of models that are the vision part of a larger one: vision tower and projector, without the language model.

Nothing else of the checkpoint is read from disk or held in memory, so that a vision student or teacher does not cost a
language model of billions of parameters. Modules keep the names that they have in the whole model, so that adapters
trained on the part fit the whole.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel


class VisionPart(PreTrainedModel):
    """A model without token embeddings; libraries that read them receive an empty module."""

    def get_input_embeddings(self) -> nn.Module:
        """Return a module without parameters: nothing is tied to it."""
        return nn.Identity()

    def get_output_embeddings(self) -> None:
        """Return None: the model generates no text."""


def skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without weights and adapters, on `meta`, to compute shapes."""
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config))
