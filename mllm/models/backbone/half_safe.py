"""Training over fp16, 8-bit and 4-bit stored weights with an fp32 residual stream, in plain PyTorch.

Turing cards (T4, GTX 16xx) have no bf16, and the activations of Gemma 3 exceed fp16's 65,504
(https://github.com/huggingface/transformers/issues/36822), so `fp16=True` ends in inf and NaN. Here every tensor
between two layers is fp32, and only the matrix products run in fp16, on rows that were first scaled by a power of two
to |x| <= 1: exact, so nothing is lost but fp16's own rounding of the factors and of the product.

The product of such a row with a row of W is at most that row's sum of magnitudes (in the backward, a column's), which
is measured once, when a layer is converted: where it could exceed fp16, x is scaled lower. No x below 2^127 overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel

LARGEST = 2.0**15
"""The bound of a product's magnitude: below 65,504, with room for the rounding of its partial sums."""


def row_scales(x: Tensor) -> Tensor:
    """The smallest power of two above the magnitudes of each row, [..., 1]; 1 for a row of zeros."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    mantissa, _ = torch.frexp(largest)
    # largest = mantissa * 2^n with mantissa in [0.5, 1): the quotient is exactly 2^n, which exp2 and pow need not give.
    return torch.where(largest > 0, largest / mantissa, torch.ones_like(largest))


def headroom(weight: Tensor) -> tuple[float, float]:
    """By which powers of two x and the gradient must be scaled further, so that products with `weight` fit in fp16."""
    sums = (torch.linalg.vector_norm(weight, ord=1, dim=dim, dtype=torch.float32).max() for dim in (1, 0))
    forward, backward = (float(row_scales(total.reshape(1) / LARGEST).clamp_min(1)) for total in sums)
    return forward, backward


def _product(x: Tensor, weight: Tensor, room: float) -> Tensor:
    """x @ weight.T in fp32, by an fp16 product of scaled rows."""
    x = x.float()
    scale = row_scales(x) * room
    return F.linear((x / scale).half(), weight).float().mul_(scale)


class _HalfSafeProduct(torch.autograd.Function):
    """The product with a frozen weight, which is made anew in the backward; saves no activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, make_weight: Callable[[], Tensor], room: tuple[float, float]) -> Tensor:
        ctx.make_weight, ctx.room, ctx.dtype = make_weight, room, x.dtype
        return _product(x, make_weight(), room[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _product(gradient, ctx.make_weight().t(), ctx.room[1]).to(ctx.dtype), None, None


def half_safe_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times a frozen fp16 weight [out, in], plus a bias, in fp32 out of fp16 products that never overflow.

    Gradients reach x and the bias, never the weight.
    """
    y = _HalfSafeProduct.apply(x, lambda: weight, headroom(weight))
    return y if bias is None else y + bias.float()


class HalfSafeLinear(nn.Module):
    """What a frozen `nn.Linear` becomes: the same module, names and weight, with the product above as its forward."""

    weight: Any  # a nn.Parameter, or its subclass of bitsandbytes
    bias: Any
    room: tuple[float, float]
    """The `headroom` of its weight."""

    def half_weight(self) -> Tensor:
        """The weight [out, in] in fp16."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out], fp32 whatever x is."""
        y = _HalfSafeProduct.apply(x, self.half_weight, self.room)
        return y if self.bias is None else y + self.bias


class HalfSafeLinear16(HalfSafeLinear, nn.Linear):
    """A Linear whose weight is stored in fp16."""


class HalfSafeLinear8bit(HalfSafeLinear, bnb.nn.Linear8bitLt):
    """A Linear whose rows are stored in int8 with an fp32 scale each."""

    def half_weight(self) -> Tensor:
        """The rows times their scales / 127, in fp16; scaled before the product, which int8 values would overflow."""
        scales = self.weight.SCB if self.state.SCB is None else self.state.SCB
        return bnb.functional.int8_vectorwise_dequant(self.weight.data, scales).half()


class HalfSafeLinear4bit(HalfSafeLinear, bnb.nn.Linear4bit):
    """A Linear whose weight is stored in blocks of 4-bit numbers (NF4 or FP4)."""

    def half_weight(self) -> Tensor:
        """The blocks times their scales, in fp16."""
        state = self.weight.quant_state
        return bnb.functional.dequantize_4bit(self.weight.data, state).half()


class HalfSafeEmbedding(nn.Embedding):
    """An embedding whose table is stored in fp16 and whose rows, scaled as the family does, are fp32."""

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] to rows [..., D]."""
        rows = F.embedding(ids, self.weight).float()
        scale = self._buffers.get("embed_scale")
        # Gemma multiplies by sqrt(D), which could overflow in fp16.
        return rows if scale is None else rows * scale.float()


HALF_SAFE = (HalfSafeLinear, HalfSafeEmbedding)
"""What `keep_residual_in_fp32` makes of layers."""


def keep_residual_in_fp32(model: nn.Module) -> None:
    """Make `model` compute in fp32 between its layers, over weights that stay stored as they are, in place.

    Frozen Linear layers (those inside PEFT's layers too, and an output projection tied to the embedding) keep their
    fp16, 8-bit or 4-bit weights and compute by `half_safe_linear`; frozen token embeddings keep fp16 tables; all other
    parameters and buffers become fp32: norms, biases, convolutions, position embeddings, projections, all that trains.
    Call it after `attach_adapter`, which freezes the base, and before the first forward; freeze a model without an
    adapter first. Pixels must be fp32; attention runs in fp32, since its inputs are. Modules keep their names, and
    their classes as base classes, so PEFT, `state_dict` and tied weights see no difference.
    """
    tokens = next(part for part in model.modules() if isinstance(part, PreTrainedModel)).get_input_embeddings()
    for module in model.modules():
        kind = _half_safe_class(module, is_tokens=module is tokens)
        if kind is not None:
            assert "forward" not in vars(module), "accelerate's offloading hooks would keep calling the old forward"
            # FSDP2 does the same: a new class on the living module keeps names, hooks and ties, unlike a wrapper.
            module.__class__ = kind
            if isinstance(module, HalfSafeLinear):
                module.room = headroom(module.half_weight())
        kept: set[str] = {"weight"} if isinstance(module, HALF_SAFE) else set()
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point() and name not in kept:
                parameter.data = parameter.data.float()
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.float()


def _half_safe_class(module: nn.Module, is_tokens: bool) -> type[nn.Module] | None:
    """The class that keeps this module's weight as it is stored, or None where fp32 is meant (or done already)."""
    if isinstance(module, HALF_SAFE):
        return None
    if isinstance(module, bnb.nn.Linear4bit):
        weight: Any = module.weight
        packed = vars(weight.quant_state).get("packing_format_for_cpu", False)
        assert not packed, "bitsandbytes reorders 4-bit weights in its first forward on a CPU"
        return HalfSafeLinear4bit
    if isinstance(module, bnb.nn.Linear8bitLt):
        return HalfSafeLinear8bit
    if not isinstance(module, nn.Linear | nn.Embedding) or module.weight.requires_grad:
        return None
    if module.weight.dtype is not torch.float16:
        return None
    if type(module) is nn.Linear:
        return HalfSafeLinear16
    # Gemma 3n has a second large table; other embeddings (positions) are small, and read by more than a look-up.
    is_table = isinstance(module, nn.Embedding) and (is_tokens or "embed_scale" in module._buffers)
    return HalfSafeEmbedding if is_table else None
