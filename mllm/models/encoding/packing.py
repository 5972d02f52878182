"""Layout of several samples in one row: each attends to itself and to the tokens that it shares, from position 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mllm.structures import Batch, Encoded

LEADER, SHARED = "shared_leader", "shared_tokens"
"""Keys of tensors [B] in a batch of one row: index of the sample whose first tokens a sample shares, and their number.
A sample that shares nothing is its own leader. A leader precedes its followers."""


def packing(pad: Callable[[Sequence[Encoded]], Batch]) -> Callable[..., Batch]:
    """Return a function of samples, their leaders and their shared tokens, whose batch is one row.

    Args:
        pad: Function that pads samples.
    """

    def padded(samples: Sequence[Encoded], leaders: Sequence[int], shared: Sequence[int]) -> Batch:
        assert list(leaders) == list(range(len(samples))), "these samples share no tokens"
        batch = pad(samples)
        layout = {LEADER: torch.tensor(leaders), SHARED: torch.tensor(shared)}
        return replace(batch, student=batch.student | layout)

    return padded


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


def followers(student: dict[str, Tensor]) -> Tensor:
    """Return a mask [B] of the samples that follow another one in a row, and could attend to it by mistake."""
    follows = torch.ones(len(student["input_ids"]), dtype=torch.bool, device=student["input_ids"].device)
    follows[0] = False
    return follows & (LEADER in student)
