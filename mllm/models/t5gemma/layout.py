"""Table of the arrays of T5Gemma in Flax and the weights of transformers that contain the same values.

Both directions of the conversion read this table, so each is the inverse of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mllm.models.t5gemma.sizes import Dimensions, Stack

ENCODER, DECODER = "encoder", "decoder"
EMBEDDING = "embedder/input_embedding"
ROWS = "V"


@dataclass(frozen=True)
class Row:
    """One array of Flax, and the weights of transformers with its values.

    Axes are letters: V rows of the vocabulary, D width, C width of the encoder, F hidden dimension of a feed-forward
    layer, N heads, K heads of keys and values, H dimension of a head. An array of several weights has one more axis
    in front, on which they are stacked.
    """

    array: str
    """Path in the encoder or decoder, or in a layer."""
    axes: str
    """Axes of the array, without the one of stacked weights."""
    weight_axes: str
    """Axes of a weight; those without a space between them are joined to one dimension."""
    weights: tuple[str, ...]
    trait: str = ""
    """Trait of the stacks that have this array; see `_traits`. Empty: all of them."""


_SCALE = ("D", "D")

TABLE = (
    Row(EMBEDDING, "VD", "V D", ("embed_tokens",)),
    Row("final_norm/scale", *_SCALE, ("norm",)),
)
"""Arrays of an encoder or a decoder outside its layers."""

LAYER_TABLE = (
    Row("pre_attention_norm/scale", *_SCALE, ("pre_self_attn_layernorm",)),
    Row("attn/qkv_einsum/w", "NDH", "NH D", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "ungrouped"),
    Row("attn/q_einsum/w", "NDH", "NH D", ("self_attn.q_proj",), "grouped"),
    Row("attn/kv_einsum/w", "KDH", "KH D", ("self_attn.k_proj", "self_attn.v_proj"), "grouped"),
    Row("attn/attn_vec_einsum/w", "NHD", "D NH", ("self_attn.o_proj",)),
    Row("post_attention_norm/scale", *_SCALE, ("post_self_attn_layernorm",)),
    Row("pre_cross_attention_norm/scale", *_SCALE, ("pre_cross_attn_layernorm",), DECODER),
    Row("cross_attn/q_einsum/w", "NDH", "NH D", ("cross_attn.q_proj",), DECODER),
    Row("cross_attn/kv_einsum/w", "KCH", "KH C", ("cross_attn.k_proj", "cross_attn.v_proj"), DECODER),
    Row("cross_attn/attn_vec_einsum/w", "NHD", "D NH", ("cross_attn.o_proj",), DECODER),
    Row("post_cross_attention_norm/scale", *_SCALE, ("post_cross_attn_layernorm",), DECODER),
    Row("pre_ffw_norm/scale", *_SCALE, ("pre_feedforward_layernorm",)),
    Row("mlp/gating_einsum", "DF", "F D", ("mlp.gate_proj", "mlp.up_proj"), "width first"),
    Row("mlp/gating_einsum", "FD", "F D", ("mlp.gate_proj", "mlp.up_proj"), "hidden first"),
    Row("mlp/linear", "FD", "D F", ("mlp.down_proj",)),
    Row("post_ffw_norm/scale", *_SCALE, ("post_feedforward_layernorm",)),
)
"""Arrays of a layer. The weights of norms are equal: both frameworks multiply by 1 + weight."""


@dataclass(frozen=True)
class Array:
    """An array of a checkpoint of Flax with all its dimensions."""

    name: str
    """Path in the checkpoint, such as `encoder/layer_0/attn/q_einsum/w`."""
    shape: tuple[int, ...]
    weights: tuple[str, ...]
    """Names of its weights in transformers."""
    weight_shape: tuple[int, ...]
    sizes: tuple[int, ...]
    """Sizes of the axes of a weight, before they are joined."""
    order: tuple[int, ...]
    """Axes of the array in the order of the weight."""

    def weights_of(self, array: Tensor) -> Iterator[Tensor]:
        """Yield the weights in an array of this shape, one after the other because most of them are copies."""
        for part in array.unbind() if len(self.weights) > 1 else (array,):
            yield part.permute(self.order).reshape(self.weight_shape)

    def array_of(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the array with these weights; the inverse of `weights_of`."""
        inverse = [self.order.index(axis) for axis in range(len(self.order))]
        parts = [weight.reshape(self.sizes).permute(inverse) for weight in weights]
        return torch.stack(parts) if len(parts) > 1 else parts[0].contiguous()


def arrays(dimensions: Dimensions) -> Iterator[Array]:
    """Yield the arrays of a checkpoint with these dimensions."""
    for side, stack in ((ENCODER, dimensions.encoder), (DECODER, dimensions.decoder)):
        sizes = _axis_sizes(dimensions, stack)
        traits = _traits(side, stack)
        for row in TABLE:
            yield _array(row, sizes, f"{side}/", f"model.{side}.")
        for layer in range(stack.layers):
            for row in LAYER_TABLE:
                if row.trait in traits:
                    yield _array(row, sizes, f"{side}/layer_{layer}/", f"model.{side}.layers.{layer}.")


def _axis_sizes(dimensions: Dimensions, stack: Stack) -> dict[str, int]:
    """Return the sizes of all axes of a stack."""
    return {
        ROWS: dimensions.rows,
        "D": stack.width,
        "C": dimensions.encoder.width,
        "F": stack.hidden,
        "N": stack.heads,
        "K": stack.kv_heads,
        "H": stack.head_dim,
    }


def _traits(side: str, stack: Stack) -> set[str]:
    """Return the traits of a stack that determine its arrays."""
    attention = "ungrouped" if stack.heads == stack.kv_heads else "grouped"
    return {"", side, attention, "hidden first" if stack.hidden_first else "width first"}


def _array(row: Row, sizes: dict[str, int], array_prefix: str, weight_prefix: str) -> Array:
    """Return the array of a row in one layer or stack."""
    stacked = (len(row.weights),) if len(row.weights) > 1 else ()
    joined = row.weight_axes.split()
    axes = "".join(joined)
    return Array(
        name=array_prefix + row.array,
        shape=(*stacked, *(sizes[axis] for axis in row.axes)),
        weights=tuple(f"{weight_prefix}{weight}.weight" for weight in row.weights),
        weight_shape=tuple(torch.Size(sizes[axis] for axis in group).numel() for group in joined),
        sizes=tuple(sizes[axis] for axis in axes),
        order=tuple(row.axes.index(axis) for axis in axes),
    )
