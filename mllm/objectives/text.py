"""Next-token prediction with logits at supervised positions only, a tile of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from mllm.objectives.base import Objective
from mllm.registry import OBJECTIVES
from mllm.structures import IGNORE, Context

TILE_BYTES = 128 * 2**20
"""Size of the fp32 logits that exist at one time."""


@OBJECTIVES.register_module()
class NextToken(Objective):
    """The cross-entropy of every supervised token given those before it.

    With a vocabulary of 262,208 the logits of four samples of 2,048 tokens would be 8.6 GB in fp32. Only supervised
    positions are projected, in tiles of `tile_bytes`, and where the vocabulary is frozen its gradient is made in the
    forward, so no logit outlives its tile.
    """

    def __init__(self, weight: float | dict[str, float] = 1.0, tile_bytes: int = TILE_BYTES) -> None:
        super().__init__(weight)
        self.tile_bytes = tile_bytes

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Supervised tokens of each sample, [B]; the first token has nothing before it."""
        return (targets["labels"][:, 1:] != IGNORE).sum(dim=1)

    def total(self, context: Context) -> Tensor:
        """The cross-entropy summed over each sample's supervised tokens, [B], fp32."""
        labels = context.targets["labels"][:, 1:]
        sample, position = (labels != IGNORE).nonzero(as_tuple=True)
        hidden_TD = context.student.hidden_BLD[sample, position]
        student = context.student
        assert student.vocabulary is not None, "the rules refuse this objective for a model that does not speak"
        loss_T = token_losses(
            hidden_TD, labels[sample, position], student.vocabulary, student.softcap, self.tile_bytes, student.rows
        )
        return loss_T.new_zeros(labels.shape[0]).index_add(0, sample, loss_T)


def token_losses(
    hidden_TD: Tensor,
    labels_T: Tensor,
    vocabulary: nn.Module,
    softcap: float | None,
    tile_bytes: int = TILE_BYTES,
    rows: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The cross-entropy [T] of each token, through a vocabulary projection that may be softcapped.

    `rows` are words with weights of their own, ids [R] and weights [R, D]; `vocabulary` itself, when it is called, has
    them already.
    """
    if (
        isinstance(vocabulary, nn.Linear)
        and vocabulary.weight.is_floating_point()
        and vocabulary.bias is None
        and not vocabulary.weight.requires_grad
    ):
        ids_R, rows_RD = (None, None) if rows is None else rows
        return _FrozenVocabularyLoss.apply(hidden_TD, labels_T, vocabulary.weight, softcap, tile_bytes, ids_R, rows_RD)

    def tile_loss(hidden: Tensor, labels: Tensor) -> Tensor:
        logits = vocabulary(hidden).float()
        return cross_entropy(
            logits if softcap is None else softcap * torch.tanh(logits / softcap), labels, reduction="none"
        )

    with torch.no_grad():
        width = vocabulary(hidden_TD[:1]).shape[-1]
    losses = [
        checkpoint(tile_loss, hidden_TD[rows], labels_T[rows], use_reentrant=False)
        for rows in _tiles(len(labels_T), width, tile_bytes)
    ]
    return torch.cat(losses) if losses else hidden_TD.sum(dim=1).float()


class _FrozenVocabularyLoss(torch.autograd.Function):
    """Cross-entropy whose gradient to the hidden states is made beside the loss, in two matrix products a tile."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        labels_T: Tensor,
        weight_VD: Tensor,
        softcap: float | None,
        tile_bytes: int,
        ids_R: Tensor | None,
        rows_RD: Tensor | None,
    ) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[6]
        device = hidden_TD.device.type
        autocast = torch.is_autocast_enabled(device)
        weight = weight_VD.to(torch.get_autocast_dtype(device)) if autocast else weight_VD
        loss_T = torch.empty(len(labels_T), dtype=torch.float32, device=hidden_TD.device)
        gradient_TD = torch.empty_like(hidden_TD) if needs_gradient else None
        # The share of a word with weights of its own is needed again for their gradient, which sums over the tokens.
        error_TR = None if ids_R is None else torch.zeros(len(labels_T), len(ids_R), device=hidden_TD.device)
        tiles = list(_tiles(len(labels_T), weight.shape[0], tile_bytes))
        # One tile's memory serves all: a fresh one each time costs a CPU more in page faults than the softmax itself.
        product = weight.new_empty(max((rows.stop - rows.start for rows in tiles), default=0), weight.shape[0])
        wide = product if weight.dtype is torch.float32 else torch.empty_like(product, dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            for rows in tiles:
                logits = _project(hidden_TD[rows], weight, product, wide)
                if ids_R is not None and rows_RD is not None:
                    logits[:, ids_R] = hidden_TD[rows].float() @ rows_RD.T
                if softcap is not None:
                    logits.div_(softcap).tanh_().mul_(softcap)
                label = labels_T[rows, None]
                logit = logits.gather(1, label)
                slope = None if softcap is None or gradient_TD is None else 1 - (logits / softcap).square()
                top = logits.amax(dim=1, keepdim=True)
                error = torch.softmax(logits, dim=1, out=logits)
                # The largest logit's share is at least one in the vocabulary, so its logarithm gives the normalizer.
                loss_T[rows] = (top - error.amax(dim=1, keepdim=True).log() - logit).squeeze(1)
                if gradient_TD is not None:
                    error.scatter_add_(1, label, error.new_full(label.shape, -1.0))
                    if slope is not None:
                        error *= slope
                    own = None
                    if ids_R is not None and rows_RD is not None and error_TR is not None:
                        own = error_TR[rows] = error[:, ids_R]
                        error[:, ids_R] = 0.0
                    if wide is not product:
                        error = product[: len(error)].copy_(error)
                    gradient = error @ weight
                    if own is not None and rows_RD is not None:
                        gradient = gradient + own @ rows_RD
                    gradient_TD[rows] = gradient.to(gradient_TD.dtype)
        ctx.save_for_backward(gradient_TD, hidden_TD if error_TR is not None else None, error_TR)
        return loss_T

    @staticmethod
    def backward(ctx: Any, upstream_T: Tensor) -> tuple[Tensor | None, ...]:
        gradient_TD, hidden_TD, error_TR = ctx.saved_tensors
        to_hidden = (gradient_TD * upstream_T[:, None]).to(gradient_TD.dtype)
        to_rows = None if error_TR is None else (error_TR * upstream_T[:, None]).T @ hidden_TD.float()
        return to_hidden, None, None, None, None, None, to_rows


def _project(hidden_TD: Tensor, weight_VD: Tensor, product: Tensor, wide: Tensor) -> Tensor:
    """The logits [T, V] in fp32, not yet capped, written into `wide` by way of `product`, perhaps the same memory."""
    scaled, scale = _fit(hidden_TD, weight_VD.dtype)
    narrow = torch.mm(scaled, weight_VD.T, out=product[: len(scaled)])
    logits = wide[: len(scaled)]
    if wide is not product:
        logits.copy_(narrow)
    if scale is not None:
        logits *= scale
    return logits


def _fit(hidden_TD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The hidden states in the vocabulary's dtype; in fp16, which could overflow, each row over a power of two."""
    if dtype is not torch.float16 or hidden_TD.dtype is torch.float16:
        return hidden_TD.to(dtype), None
    scale = hidden_TD.abs().amax(dim=1, keepdim=True).clamp_min(1e-30).log2().ceil().exp2()
    return (hidden_TD / scale).to(dtype), scale


def _tiles(rows: int, width: int, tile_bytes: int) -> Iterator[slice]:
    """Slices of rows, as equal as can be, whose fp32 logits of `width` fit in `tile_bytes`."""
    count = -(-rows // max(1, tile_bytes // (4 * width)))
    for i in range(count):
        yield slice(rows * i // count, rows * (i + 1) // count)
