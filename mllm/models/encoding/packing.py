"""Several samples in one row of a forward: each sees itself alone, and its positions begin at 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

ROW = "packed_row"
"""The key of a batch's [B]: which row of the forward each sample stands in, behind those before it in the batch."""


@dataclass(frozen=True)
class Packing:
    """Where the T tokens of padded samples [B, L] stand in rows [R, W] without padding between them."""

    sample_T: Tensor
    position_T: Tensor
    """The token's column among the padded samples."""
    order_T: Tensor
    """Its position in its sample, from 0."""
    place_T: Tensor
    """Its place in the rows, one after the other."""
    rows: int
    width: int
    shape: tuple[int, int]
    """B and L."""

    @classmethod
    def of(cls, mask_BL: Tensor, row_B: Tensor) -> Packing:
        """The packing of the tokens that an attention mask shows."""
        lengths_B = mask_BL.sum(dim=1)
        before_BB = (row_B[:, None] == row_B[None, :]).tril(-1)
        start_B = (before_BB * lengths_B).sum(dim=1)
        rows, width = int(row_B.max()) + 1, int((start_B + lengths_B).max())
        sample_T, position_T = mask_BL.nonzero(as_tuple=True)
        order_T = (mask_BL.cumsum(dim=1) - 1)[sample_T, position_T]
        place_T = row_B[sample_T] * width + start_B[sample_T] + order_T
        return cls(sample_T, position_T, order_T, place_T, rows, width, (mask_BL.shape[0], mask_BL.shape[1]))

    @property
    def position_ids(self) -> Tensor:
        """[R, W]: from 0 in every sample; 0 where nothing stands."""
        return self._placed(self.order_T)

    def pack(self, tensor_BL: Tensor) -> Tensor:
        """Padded samples as rows [R, W]; 0 where nothing stands."""
        return self._placed(tensor_BL[self.sample_T, self.position_T])

    def unpack(self, hidden_RWD: Tensor) -> Tensor:
        """Rows as padded samples [B, L, D]; 0 where padding is."""
        hidden_TD = hidden_RWD.flatten(0, 1)[self.place_T]
        empty_BLD = hidden_RWD.new_zeros(*self.shape, hidden_RWD.shape[-1])
        return empty_BLD.index_put((self.sample_T, self.position_T), hidden_TD)

    def _placed(self, tensor_T: Tensor) -> Tensor:
        empty = tensor_T.new_zeros(self.rows * self.width)
        return empty.index_put((self.place_T,), tensor_T).view(self.rows, self.width)


def last_hidden_state(backbone: nn.Module, inputs: dict[str, Tensor], row_B: Tensor | None) -> Tensor:
    """The hidden states [B, L, D] of a backbone of transformers; with `row_B` its samples share rows.

    Without an attention mask, transformers makes one out of the positions: where they do not go on by one, another
    sample begins, and nothing before it is looked at.
    """
    packing = None
    if row_B is not None:
        mask_BL = inputs["attention_mask"]
        assert all(tensor.shape == mask_BL.shape for tensor in inputs.values()), "only text is packed"
        packing = Packing.of(mask_BL, row_B)
        inputs = {name: packing.pack(tensor) for name, tensor in inputs.items() if name != "attention_mask"}
        inputs["position_ids"] = packing.position_ids
    hidden: Tensor = backbone(**inputs, use_cache=False, return_dict=True).last_hidden_state
    return hidden if packing is None else packing.unpack(hidden)


def followers(student: dict[str, Tensor]) -> Tensor:
    """Which samples [B] of a batch stand behind another in a packed row, and could see it if packing leaked."""
    row_B = student.get(ROW)
    if row_B is None:
        return torch.zeros(len(student["input_ids"]), dtype=torch.bool, device=student["input_ids"].device)
    return (row_B[:, None] == row_B[None, :]).tril(-1).any(dim=1)
