"""Hidden states that the output layer of a model reads, without its logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def states_of(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """Return the hidden states of a model that its output layer reads.

    T5 and its relatives have no module for the model without its vocabulary, and BERT and its relatives have more
    layers before it. Their states are those that the output layer receives, which then computes the logits of no
    position.
    """
    if model.base_model is not model and not _has_head(model):
        states: Tensor = model.base_model(**inputs, use_cache=False, return_dict=True).last_hidden_state
        return states
    received: list[Tensor] = []

    def receive(layer: nn.Module, arguments: tuple[Tensor]) -> Tensor:
        received.append(arguments[0])
        return arguments[0][:, :0]

    hook = model.get_output_embeddings().register_forward_pre_hook(receive)
    try:
        model(**inputs, use_cache=False, return_dict=True)
    finally:
        hook.remove()
    return received[0]


def _has_head(model: PreTrainedModel) -> bool:
    """Return True if a model has weights between its last hidden states and its output layer."""
    output = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
    others = [child.parameters() for child in model.children() if child is not model.base_model]
    return any(id(parameter) not in output for parameters in others for parameter in parameters)
