"""Next-token prediction with logits at supervised positions only, computed in tiles."""

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
from mllm.supervision import places_of

TILE_BYTES = 128 * 2**20
"""Size in bytes of the fp32 logits that exist at one time."""


@OBJECTIVES.register_module()
class NextToken(Objective):
    """Cross-entropy of each supervised token given the tokens before it.

    With a vocabulary of 262,208, the logits of four samples of 2,048 tokens would be 8.6 GB in fp32. So only supervised
    positions are projected, in tiles. If the vocabulary is frozen, the gradient is computed in the forward pass and no
    logits are stored.

    Args:
        weight: Factor of this term.
        tile_bytes: Size in bytes of the fp32 logits of one tile.
    """

    def __init__(self, weight: float | dict[str, float] = 1.0, tile_bytes: int = TILE_BYTES) -> None:
        super().__init__(weight)
        self.tile_bytes = tile_bytes

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Return the number of supervised tokens of each sample, [B]. The first token cannot be predicted."""
        return (targets["labels"][:, 1:] != IGNORE).sum(dim=1)

    def total(self, context: Context) -> Tensor:
        """Return the cross-entropy summed over the supervised tokens of each sample, [B], fp32."""
        labels = context.targets["labels"][:, 1:]
        sample, position = places_of(context.targets)
        hidden_TD = context.student.hidden_BLD[sample, position]
        student = context.student
        assert student.vocabulary is not None, "rules refuse this objective for a model that does not generate text"
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
    """Return the cross-entropy of each token, [T], fp32.

    Args:
        hidden_TD: Hidden states.
        labels_T: Token ids.
        vocabulary: Projection to the logits.
        softcap: Logits are softcap * tanh(logits / softcap). None: no cap.
        tile_bytes: Size in bytes of the fp32 logits of one tile.
        rows: Token ids [R] and trainable weights [R, D] that replace rows of a frozen `vocabulary`. A `vocabulary` that
            is called contains them.
    """
    if _is_frozen_matrix(vocabulary):
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
        checkpoint(tile_loss, hidden_TD[tile], labels_T[tile], use_reentrant=False)
        for tile in tiles(len(labels_T), width, tile_bytes)
    ]
    return torch.cat(losses) if losses else hidden_TD.sum(dim=1).float()


def _is_frozen_matrix(vocabulary: nn.Module) -> bool:
    """Return True for a linear layer with frozen floating-point weights and no bias."""
    return (
        isinstance(vocabulary, nn.Linear)
        and vocabulary.weight.is_floating_point()
        and vocabulary.bias is None
        and not vocabulary.weight.requires_grad
    )


class _FrozenVocabularyLoss(torch.autograd.Function):
    """Cross-entropy that computes the gradient of the hidden states in the forward pass, tile by tile."""

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
        weight = weight_VD.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight_VD
        trained = None if ids_R is None or rows_RD is None else _TrainedRows(ids_R, rows_RD, len(labels_T))
        loss_T = torch.empty(len(labels_T), dtype=torch.float32, device=hidden_TD.device)
        gradient_TD = torch.empty_like(hidden_TD) if needs_gradient else None
        slices = list(tiles(len(labels_T), weight.shape[0], tile_bytes))
        projection = _Projection(weight, max((tile.stop - tile.start for tile in slices), default=0))
        with torch.autocast(device, enabled=False):
            for tile in slices:
                hidden, label = hidden_TD[tile], labels_T[tile, None]
                logits = projection.logits(hidden)
                if trained is not None:
                    trained.replace_logits(logits, hidden)
                if softcap is not None:
                    logits.div_(softcap).tanh_().mul_(softcap)
                slope = None if softcap is None or gradient_TD is None else 1 - (logits / softcap).square()
                loss_T[tile], probabilities = _softmax_loss(logits, label)
                if gradient_TD is not None:
                    error = _logit_gradient(probabilities, label, slope)
                    gradient = _hidden_gradient(error, projection, trained, tile)
                    gradient_TD[tile] = gradient.to(gradient_TD.dtype)
        hidden_of_rows, error_TR = (None, None) if trained is None else (hidden_TD, trained.error_TR)
        ctx.save_for_backward(gradient_TD, hidden_of_rows, error_TR)
        return loss_T

    @staticmethod
    def backward(ctx: Any, upstream_T: Tensor) -> tuple[Tensor | None, ...]:
        gradient_TD, hidden_TD, error_TR = ctx.saved_tensors
        to_hidden = (gradient_TD * upstream_T[:, None]).to(gradient_TD.dtype)
        to_rows = None if error_TR is None else (error_TR * upstream_T[:, None]).T @ hidden_TD.float()
        return to_hidden, None, None, None, None, None, to_rows


class _Projection:
    """Multiplication with the vocabulary in one buffer for all tiles.

    A new buffer for each tile would cost a CPU more time in page faults than the softmax.
    """

    def __init__(self, weight_VD: Tensor, rows: int) -> None:
        self.weight = weight_VD
        self.product = weight_VD.new_empty(rows, weight_VD.shape[0])
        """Logits in the dtype of the vocabulary."""
        self.is_wide = weight_VD.dtype is torch.float32
        self.wide = self.product if self.is_wide else torch.empty_like(self.product, dtype=torch.float32)
        """Logits in fp32; the tensor `product` if the vocabulary is in fp32."""

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Return the logits [T, V] in fp32, without cap, in the buffer."""
        scaled, scale = _fit(hidden_TD, self.weight.dtype)
        narrow = torch.mm(scaled, self.weight.T, out=self.product[: len(scaled)])
        logits = self.wide[: len(scaled)]
        if not self.is_wide:
            logits.copy_(narrow)
        if scale is not None:
            logits *= scale
        return logits

    def backward(self, error_TV: Tensor) -> Tensor:
        """Return the gradient of the hidden states [T, D] for a gradient of the logits, overwriting the buffer."""
        if not self.is_wide:
            error_TV = self.product[: len(error_TV)].copy_(error_TV)
        return error_TV @ self.weight


class _TrainedRows:
    """Trained rows of the vocabulary: their logits and the gradient of their logits."""

    def __init__(self, ids_R: Tensor, rows_RD: Tensor, tokens: int) -> None:
        self.ids_R, self.rows_RD = ids_R, rows_RD
        self.error_TR = torch.zeros(tokens, len(ids_R), device=rows_RD.device)
        """Gradient of the logits of the rows. The gradient of the rows sums over all tokens, so it is stored."""

    def replace_logits(self, logits_TV: Tensor, hidden_TD: Tensor) -> None:
        """Write the logits of the trained rows over those of the frozen rows."""
        logits_TV[:, self.ids_R] = hidden_TD.float() @ self.rows_RD.T

    def take_error(self, error_TV: Tensor, tile: slice) -> Tensor:
        """Store the gradient of the logits of the rows, set it to 0 in `error_TV` and return it, [T, R]."""
        error = self.error_TR[tile] = error_TV[:, self.ids_R]
        error_TV[:, self.ids_R] = 0.0
        return error


def _softmax_loss(logits_TV: Tensor, label_T1: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy [T] and the probabilities [T, V], which overwrite the logits."""
    logit = logits_TV.gather(1, label_T1)
    top = logits_TV.amax(dim=1, keepdim=True)
    probabilities = torch.softmax(logits_TV, dim=1, out=logits_TV)
    # The largest probability is exp(top) / sum(exp(logits)), at least 1 / V, so its logarithm is finite.
    return (top - probabilities.amax(dim=1, keepdim=True).log() - logit).squeeze(1), probabilities


def _logit_gradient(probabilities_TV: Tensor, label_T1: Tensor, slope_TV: Tensor | None) -> Tensor:
    """Return the gradient of the logits before the cap, [T, V]: probabilities minus one-hot labels, times the slope."""
    probabilities_TV.scatter_add_(1, label_T1, probabilities_TV.new_full(label_T1.shape, -1.0))
    if slope_TV is not None:
        probabilities_TV *= slope_TV
    return probabilities_TV


def _hidden_gradient(error_TV: Tensor, projection: _Projection, trained: _TrainedRows | None, tile: slice) -> Tensor:
    """Return the gradient of the hidden states of a tile, [T, D]."""
    if trained is None:
        return projection.backward(error_TV)
    error_TR = trained.take_error(error_TV, tile)
    return projection.backward(error_TV) + error_TR @ trained.rows_RD


def _fit(hidden_TD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Convert hidden states to the dtype of the vocabulary.

    Returns:
        The hidden states and, for fp16, which could overflow, the powers of two [T, 1] by which they were divided.
    """
    if dtype is not torch.float16 or hidden_TD.dtype is torch.float16:
        return hidden_TD.to(dtype), None
    scale = hidden_TD.abs().amax(dim=1, keepdim=True).clamp_min(1e-30).log2().ceil().exp2()
    return (hidden_TD / scale).to(dtype), scale


def tiles(rows: int, width: int, tile_bytes: int) -> Iterator[slice]:
    """Yield slices of almost equal length whose fp32 logits of `width` fit in `tile_bytes`."""
    count = -(-rows // max(1, tile_bytes // (4 * width)))
    for i in range(count):
        yield slice(rows * i // count, rows * (i + 1) // count)
