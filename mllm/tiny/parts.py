"""What the tiny checkpoints share: dimensions, and parameters that are all filled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AddedToken, PreTrainedModel

TEXT = dict(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=8192,
)
"""Dimensions that the language models share: 4 heads of 32."""
VISION = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=896, patch_size=14
)
"""Dimensions that the SigLIP and CLIP towers share."""

Family = Callable[[int, dict[str, Any], dict[str, Any]], tuple[PreTrainedModel, Any]]


def new(kind: Any, **values: Any) -> Any:
    """`kind(**values)`; transformers' type hints do not name everything that its classes take."""
    return kind(**values)


def padded(vocabulary: int) -> int:
    """Published models have more rows than tokens (Gemma 3: 262,208 for 262,145); so have ours."""
    return (vocabulary // 64 + 1) * 64


def make_special(tokenizer: Any, names: list[str]) -> None:
    """Keep `names` whole: they have ids in the vocabulary already, but merges would read them as text."""
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def filled(kind: type[PreTrainedModel], config: Any, seed: int) -> PreTrainedModel:
    """A model with every parameter filled from `seed` alone, variance kept from layer to layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if parameter.ndim <= 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
                else:
                    transposed = name.endswith("mm_input_projection_weight")  # [in, out], unlike nn.Linear
                    inputs = parameter.shape[0] if transposed else parameter[0].numel()
                    parameter.copy_(torch.randn(parameter.shape) / inputs**0.5)
    return model.eval()
