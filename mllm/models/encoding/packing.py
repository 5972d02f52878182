"""Packing of several samples into one row: each attends to itself only, and its positions start at 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ROW = "packed_row"
"""Key of a tensor [B] in a batch: the row of each sample. Samples of a row are in the order of the batch."""
LEADER, SHARED = "shared_leader", "shared_tokens"
"""Keys of tensors [B] in a batch: index of the sample whose first tokens a sample shares, and their number. A sample
that shares nothing is its own leader. A leader precedes its followers."""


@dataclass(frozen=True)
class Packing:
    """Mapping of the T tokens of padded samples [B, L] to rows [R, W] without padding between samples."""

    sample_T: Tensor
    position_T: Tensor
    """Column of each token in the padded samples."""
    order_T: Tensor
    """Position of each token in its sample, from 0."""
    target_T: Tensor
    """Index of each token in the flattened rows."""
    rows: int
    width: int
    shape: tuple[int, int]
    """(B, L)."""

    @classmethod
    def of(cls, mask_BL: Tensor, row_B: Tensor) -> Packing:
        """Return the packing of the tokens in an attention mask [B, L] into the rows [B]."""
        lengths_B = mask_BL.sum(dim=1)
        before_BB = (row_B[:, None] == row_B[None, :]).tril(-1)
        start_B = (before_BB * lengths_B).sum(dim=1)
        rows, width = int(row_B.max()) + 1, int((start_B + lengths_B).max())
        sample_T, position_T = mask_BL.nonzero(as_tuple=True)
        order_T = (mask_BL.cumsum(dim=1) - 1)[sample_T, position_T]
        target_T = row_B[sample_T] * width + start_B[sample_T] + order_T
        return cls(sample_T, position_T, order_T, target_T, rows, width, (mask_BL.shape[0], mask_BL.shape[1]))

    @property
    def position_ids(self) -> Tensor:
        """Return position ids [R, W], starting at 0 in every sample. Unused positions are 0."""
        return self._scatter(self.order_T)

    def pack(self, tensor_BL: Tensor) -> Tensor:
        """Return padded samples [B, L] as rows [R, W]. Unused positions are 0."""
        return self._scatter(tensor_BL[self.sample_T, self.position_T])

    def unpack(self, hidden_RWD: Tensor) -> Tensor:
        """Return rows [R, W, D] as padded samples [B, L, D]. Padding is 0."""
        hidden_TD = hidden_RWD.flatten(0, 1)[self.target_T]
        empty_BLD = hidden_RWD.new_zeros(*self.shape, hidden_RWD.shape[-1])
        return empty_BLD.index_put((self.sample_T, self.position_T), hidden_TD)

    def _scatter(self, tensor_T: Tensor) -> Tensor:
        empty = tensor_T.new_zeros(self.rows * self.width)
        return empty.index_put((self.target_T,), tensor_T).view(self.rows, self.width)


def last_hidden_state(model: PreTrainedModel, inputs: dict[str, Tensor], row_B: Tensor | None) -> Tensor:
    """Return the hidden states [B, L, D] that the vocabulary of a model reads. With `row_B`, samples share rows.

    Without an attention mask, transformers derives one from the position ids: a position that does not follow its
    predecessor starts a new sample, which does not attend to earlier tokens.
    """
    packing = None
    if row_B is not None:
        mask_BL = inputs["attention_mask"]
        assert all(tensor.shape == mask_BL.shape for tensor in inputs.values()), "only text is packed"
        packing = Packing.of(mask_BL, row_B)
        inputs = {name: packing.pack(tensor) for name, tensor in inputs.items() if name != "attention_mask"}
        inputs["position_ids"] = packing.position_ids
    hidden = states_of(model, inputs)
    return hidden if packing is None else packing.unpack(hidden)


def states_of(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """Return the last hidden states of a model.

    T5 and its relatives have no module for the model without its vocabulary. Their states are those that the output
    layer receives, which then computes the logits of no position.
    """
    if model.base_model is not model:
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


def followers(student: dict[str, Tensor]) -> Tensor:
    """Return a mask [B] of the samples that follow another one in a packed row, and could attend to it by mistake.

    A batch of samples that share tokens is one row.
    """
    row_B = torch.zeros_like(student[LEADER]) if LEADER in student else student.get(ROW)
    if row_B is None:
        return torch.zeros(len(student["input_ids"]), dtype=torch.bool, device=student["input_ids"].device)
    return (row_B[:, None] == row_B[None, :]).tril(-1).any(dim=1)
