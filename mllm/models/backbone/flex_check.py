"""Check of FlexAttention on a device: outputs and gradients of a row of segments are compared with those of SDPA."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from mllm.errors import is_out_of_memory, one_line
from mllm.models.backbone.flex_segments import flex_segments
from mllm.models.backbone.segment_attention import RowAttention, Segment, Segments, segment_attention

CAPABILITY = (8, 0)
"""Oldest compute capability that Triton, in which the kernels are written, supports."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest relative error (norm of the difference over the norm) of outputs and of each gradient, by dtype."""
TF32_TOLERANCE = 5e-3
"""That of fp32 where products may be computed in TF32, whose numbers have 10 bits, as those of fp16."""
WINDOWS = (None, 40)
"""Windows of the check."""
ROW = (
    Segment(0, 150, blocks=((10, 90),)),
    Segment(150, 190, prefix=((0, 100),)),
    Segment(190, 200, prefix=((0, 100), (150, 170))),
    Segment(200, 300),
)
"""Row of the check: three questions about one image, whose tokens attend to each other, and a text. It has blocks of
128 tokens without attention, with some and with attention of all tokens, and two lengths of prefixes."""


@dataclass(frozen=True)
class Heads:
    """Shapes of the attention of a language model."""

    queries: int
    keys: int
    """Number of heads of queries, and of keys and values."""
    size: int
    """Number of elements of a head."""
    softcap: float | None
    dropout: float

    @classmethod
    def of(cls, config: PretrainedConfig) -> Heads:
        """Return the shapes in the config of a language model."""
        values = config.to_dict()
        queries = values["num_attention_heads"]
        return cls(
            queries,
            values.get("num_key_value_heads") or queries,
            values.get("head_dim") or values["hidden_size"] // queries,
            values.get("attn_logit_softcapping"),
            values.get("attention_dropout") or 0.0,
        )


def reason_against_flex(
    config: PretrainedConfig, device: str, capability: tuple[int, int] | None, dtype: torch.dtype
) -> str | None:
    """Return the reason why FlexAttention cannot be used for rows of a language model; None if it can.

    On a GPU its outputs and gradients for `ROW` are compared with those of SDPA.

    Args:
        config: Config of the language model.
        device: Device of the training.
        capability: Compute capability of a GPU.
        dtype: Dtype of queries and keys.
    """
    heads = Heads.of(config)
    return unsuitable(heads, device, capability) or disagreement(heads, torch.device(device), dtype)


def unsuitable(heads: Heads, device: str, capability: tuple[int, int] | None) -> str | None:
    """Return the reason why FlexAttention is not tried; None if it is."""
    if device != "cuda":
        return "FlexAttention has no backward pass on a CPU"
    if capability is None or capability < CAPABILITY:
        found = "an unknown one" if capability is None else ".".join(map(str, capability))
        return f"FlexAttention needs compute capability 8.0, and the GPU has {found}"
    if heads.dropout:
        return f"FlexAttention has no dropout, and attention_dropout of the checkpoint is {heads.dropout:g}"
    return None


def disagreement(heads: Heads, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return the reason why FlexAttention is not used, after both were computed for `ROW`; None if they agree."""
    try:
        errors = dict(relative_errors(heads, device, dtype))
    except Exception as error:  # a compiler and a driver have errors of many classes
        if is_out_of_memory(error):
            raise
        return f"FlexAttention failed on this device ({type(error).__name__}: {one_line(str(error))[:200]})"
    limit = limit_of(dtype)
    wrong = [f"{name} by {error:.1e}" for name, error in errors.items() if not error <= limit]  # also for NaN
    return f"FlexAttention differs from SDPA on this device: {', '.join(wrong)} (limit {limit:g})" if wrong else None


def limit_of(dtype: torch.dtype) -> float:
    """Return the largest relative error that is accepted."""
    return TF32_TOLERANCE if dtype is torch.float32 and _has_tf32() else TOLERANCE[dtype]


def _has_tf32() -> bool:
    """Return True if products in fp32 may be computed in TF32 on a GPU."""
    try:  # after this setting is used, `get_float32_matmul_precision` raises an error
        return torch.backends.cuda.matmul.fp32_precision == "tf32"
    except AttributeError:  # PyTorch before 2.9
        return torch.backends.cuda.matmul.allow_tf32


def relative_errors(heads: Heads, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """Yield names and relative errors of outputs and gradients of random queries, keys and values, for each window."""
    for window in WINDOWS:
        found = _attended(heads, device, dtype, flex_segments, window)
        expected = _attended(heads, device, dtype, None, window)
        for name, one, other in zip(("outputs", "query", "key", "value"), found, expected, strict=True):
            name = name if name == "outputs" else f"gradients of the {name}"
            where = name if window is None else f"{name} in a window"
            yield where, float((one.double() - other.double()).norm() / other.double().norm())


def _attended(
    heads: Heads, device: torch.device, dtype: torch.dtype, attend: RowAttention | None, window: int | None
) -> list[Tensor]:
    """Return the outputs for `ROW` and the gradients of random queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    length = ROW[-1].end

    def random(count: int) -> Tensor:
        drawn = torch.randn(1, count, length, heads.size, generator=generator)
        return drawn.to(device, dtype).requires_grad_()

    inputs = random(heads.queries), random(heads.keys), random(heads.keys)
    weights = torch.randn(1, length, heads.queries, heads.size, generator=generator).to(device, dtype)
    with torch.autocast(device.type, enabled=False), torch.enable_grad():
        output, _ = segment_attention(
            nn.Module(), *inputs, Segments(ROW, attend), sliding_window=window, softcap=heads.softcap
        )
        gradients = torch.autograd.grad((output * weights).sum(), inputs)
    return [output.detach(), *gradients]
