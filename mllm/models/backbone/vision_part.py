"""Base class of models that are the vision part of a larger one: vision tower and projector, no language model.

Only this part of the checkpoint is read from disk and kept in memory, so a vision student or teacher does not need the
memory of a language model. Modules keep the names that they have in the full model, so adapters trained on the part fit
the full model.
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

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False: all modules are those of transformers.

        In classes outside of its package, transformers does not draw new weights by the rules of modules without own
        parameters, such as SigLIP's attention and MLP.
        """
        return False


def skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without weights and adapters, on `meta`, to compute shapes."""
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config))
