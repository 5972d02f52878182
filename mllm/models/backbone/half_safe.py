"""Training over fp16, 8-bit and 4-bit weights with an fp32 residual stream, in plain PyTorch.

Turing GPUs (T4, GTX 16xx) have no bf16, and the activations of Gemma 3 exceed 65,504, the maximum of fp16
(https://github.com/huggingface/transformers/issues/36822), so `fp16=True` ends in inf and NaN. Here all tensors between
layers are fp32. Only the matrix products run in fp16, on rows scaled by a power of two to |x| <= 1. This scaling is
exact, so the only error is the rounding of the factors and of the product to fp16.

The product of such a row with a row of W is at most the sum of magnitudes of the row of W (in the backward pass, of a
column). It is computed once, when a layer is converted. If it could exceed fp16, x is scaled further. No x below 2^127
overflows.
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
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextAltUp

from mllm.models.backbone.kernels import device_of

LARGEST = 2.0**15
"""Bound of the magnitude of a product: below 65,504, with a margin for the rounding of partial sums."""


def row_scales(x: Tensor) -> Tensor:
    """Return the smallest power of two above the magnitudes of each row, [..., 1]. 1 for a row of zeros."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    mantissa, _ = torch.frexp(largest)
    # largest = mantissa * 2^n with mantissa in [0.5, 1): the quotient is exactly 2^n, which exp2 and pow need not give.
    return torch.where(largest > 0, largest / mantissa, torch.ones_like(largest))


def headroom(weight: Tensor) -> tuple[float, float]:
    """Return powers of two that scale x and the gradient further, so that products with `weight` fit in fp16."""
    sums = (torch.linalg.vector_norm(weight, ord=1, dim=dim, dtype=torch.float32).max() for dim in (1, 0))
    forward, backward = (float(row_scales(total.reshape(1) / LARGEST).clamp_min(1)) for total in sums)
    return forward, backward


def _product(x: Tensor, weight: Tensor, room: float) -> Tensor:
    """Return x @ weight.T in fp32, computed as an fp16 product of scaled rows."""
    x = x.float()
    scale = row_scales(x) * room
    rows = (x / scale).half()
    if device_of(rows) == "cpu":  # PyTorch's own fp16 product takes ten times as long; sums are fp32 in both
        return F.linear(rows.float(), weight.float()).half().float().mul_(scale)
    return F.linear(rows, weight).float().mul_(scale)


class _HalfSafeProduct(torch.autograd.Function):
    """Product with a frozen weight. The backward pass recomputes the weight and saves no activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, make_weight: Callable[[], Tensor], room: tuple[float, float]) -> Tensor:
        ctx.make_weight, ctx.room, ctx.dtype = make_weight, room, x.dtype
        return _product(x, make_weight(), room[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _product(gradient, ctx.make_weight().t(), ctx.room[1]).to(ctx.dtype), None, None


def half_safe_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x [..., in] times a frozen fp16 weight [out, in], plus a bias, in fp32. The fp16 product cannot overflow.

    x and the bias receive gradients, the weight does not.
    """
    y = _HalfSafeProduct.apply(x, lambda: weight, headroom(weight))
    return y if bias is None else y + bias.float()


class HalfSafeLinear(nn.Module):
    """Replacement class of a frozen `nn.Linear`: the module keeps its names and weight, with the product above."""

    weight: Any  # a nn.Parameter, or its subclass of bitsandbytes
    bias: Any
    room: tuple[float, float]
    """`headroom` of the weight."""

    def half_weight(self) -> Tensor:
        """Return the weight [out, in] in fp16."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out] in fp32, for any dtype of x."""
        y = _HalfSafeProduct.apply(x, self.half_weight, self.room)
        return y if self.bias is None else y + self.bias


class HalfSafeLinear16(HalfSafeLinear, nn.Linear):
    """Linear layer with a weight stored in fp16."""


class HalfSafeLinear8bit(HalfSafeLinear, bnb.nn.Linear8bitLt):
    """Linear layer with rows stored in int8 and one fp32 scale per row."""

    def half_weight(self) -> Tensor:
        """Return the rows times their scales / 127 in fp16. Unscaled int8 values would overflow in the product."""
        scales = self.weight.SCB if self.state.SCB is None else self.state.SCB
        return bnb.functional.int8_vectorwise_dequant(self.weight.data, scales).half()


class HalfSafeLinear4bit(HalfSafeLinear, bnb.nn.Linear4bit):
    """Linear layer with a weight stored in blocks of 4-bit numbers (NF4 or FP4)."""

    def half_weight(self) -> Tensor:
        """Return the blocks times their scales in fp16."""
        state = self.weight.quant_state
        return bnb.functional.dequantize_4bit(self.weight.data, state).half()


class HalfSafeEmbedding(nn.Embedding):
    """Embedding with a table stored in fp16. Its rows, scaled as in the model family, are fp32."""

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids [...] to rows [..., D]."""
        rows = F.embedding(ids, self.weight).float()
        scale = self._buffers.get("embed_scale")
        # Gemma multiplies by sqrt(D), which could overflow in fp16.
        return rows if scale is None else rows * scale.float()


HALF_SAFE = (HalfSafeLinear, HalfSafeEmbedding)
"""Replacement classes of `keep_residual_in_fp32`."""


DIRECT = (Gemma3nTextAltUp,)
"""Modules that read the weights of their Linear layers themselves while they train: these weights become fp32. They are
small: coefficients of 4 x 16 numbers, and a router of 4 rows."""


def keep_residual_in_fp32(model: nn.Module) -> None:
    """Convert `model`, in place, to compute in fp32 between layers while its weights keep their stored format.

    Frozen Linear layers (also inside PEFT's layers, and an output projection tied to the embedding) keep their fp16,
    8-bit or 4-bit weights and use `half_safe_linear`. Frozen token embeddings keep fp16 tables. All other parameters
    and buffers become fp32: norms, biases, convolutions, position embeddings, projections and trainable parameters.
    Call it after `attach_adapter`, which freezes the base, and before the first forward pass. Freeze a model without an
    adapter first. Pixels must be fp32; attention runs in fp32 because its inputs are fp32. Modules keep their names,
    and their classes as base classes, so nothing changes for PEFT, `state_dict` and tied weights.
    """
    tokens = next(part for part in model.modules() if isinstance(part, PreTrainedModel)).get_input_embeddings()
    direct = {id(child) for module in model.modules() if type(module) in DIRECT for child in module.children()}
    for module in model.modules():
        kind = None if id(module) in direct else _half_safe_class(module, is_tokens=module is tokens)
        if kind is not None:
            assert "forward" not in vars(module), "offloading hooks of accelerate would call the old forward"
            # As in FSDP2: changing the class keeps names, hooks and ties, unlike a wrapper module.
            module.__class__ = kind
            if isinstance(module, HalfSafeLinear):
                module.room = headroom(module.half_weight())
        stored: set[str] = {"weight"} if isinstance(module, HALF_SAFE) else set()
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point() and name not in stored:
                parameter.data = parameter.data.float()
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.float()


def _half_safe_class(module: nn.Module, is_tokens: bool) -> type[nn.Module] | None:
    """Return the class that keeps the weight of a module in its stored format, or None to convert it to fp32."""
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
    # Gemma 3n has a second large table. Other embeddings (positions) are small, and not only used for look-ups.
    is_table = isinstance(module, nn.Embedding) and (is_tokens or "embed_scale" in module._buffers)
    return HalfSafeEmbedding if is_table else None
