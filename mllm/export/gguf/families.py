"""Metadata and tensor layout of LLaMA, Gemma and Gemma 2 in GGUF files for llama.cpp."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import gguf
import torch
from torch import Tensor

from mllm.errors import ConfigError
from mllm.export.gguf.weights import PlannedTensor, Weights, fixed

_LANGUAGE = re.compile(r"^(model\.)?language_model\.(model\.)?")
_OTHER_TOWERS = re.compile(
    r"^(model\.)?(vision_tower|audio_tower|vision_model|multi_modal_projector|embed_vision|embed_audio)\."
)
"""Parts of a checkpoint that are not in the GGUF file of its language model."""


def language_name(stored: str) -> str | None:
    """Return the name of a stored tensor in a plain language model, `model.layers...`; None for other towers."""
    if _OTHER_TOWERS.match(stored) or stored.endswith("rotary_emb.inv_freq"):
        return None
    name = _LANGUAGE.sub("model.", stored)
    return "lm_head.weight" if name.endswith("lm_head.weight") else name


class Family:
    """Base class of the language models of one llama.cpp architecture, and the class of LLaMA."""

    arch = gguf.MODEL_ARCH.LLAMA
    activations: tuple[str, ...] = ("silu",)
    norm_offset = 0.0
    """The value that transformers adds to the weight of a norm at run time, and llama.cpp does not."""
    supports_untied = True
    """True if llama.cpp supports an output matrix that is not the embedding matrix."""

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        """Read the dimensions of `config`, the config of the language model; `source` is its name in messages."""
        self.config = config
        self.source = source
        self.layers: int = config["num_hidden_layers"]
        self.head_dim: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        self.names = gguf.get_tensor_name_map(self.arch, self.layers)

    @property
    def name(self) -> str:
        """The name of the architecture in the file."""
        return gguf.MODEL_ARCH_NAMES[self.arch]

    def refuse(self, reason: str) -> ConfigError:
        """Return the error for a property of this checkpoint that llama.cpp does not support."""
        return ConfigError(f"'{self.source}' cannot become a GGUF: {reason}")

    def check(self) -> None:
        """Raise `ConfigError` if llama.cpp would compute other values than transformers."""
        activation = self.config.get("hidden_activation") or self.config.get("hidden_act")
        if activation not in self.activations:
            raise self.refuse(f"its activation is {activation}, and llama.cpp computes {self.name} with another")
        if self.rope().get("rope_type", "default") not in ("default", "linear", "llama3"):
            raise self.refuse(
                f"its rope scaling is {self.rope()['rope_type']}; supported are default, linear and llama3"
            )

    def row_widths(self) -> set[int]:
        """Return the row lengths of the matrices of the layers; quantization works along rows."""
        inner = self.config["intermediate_size"]
        heads = self.config["num_attention_heads"] * self.head_dim
        return {self.config["hidden_size"], heads, *(inner if isinstance(inner, list) else [inner])}

    def rope(self) -> Mapping[str, Any]:
        """Return the parameters of the rotary embedding of full attention, with the keys of transformers."""
        return dict(self.config.get("rope_parameters") or {})

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Add the dimensions and constants of the architecture to the metadata."""
        config = self.config
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(self.layers)
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config.get("num_key_value_heads") or config["num_attention_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_rope_dimension_count(self.head_dim)
        rope = self.rope()
        if rope.get("rope_theta"):
            writer.add_rope_freq_base(float(rope["rope_theta"]))
        if rope.get("rope_type") == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(rope["factor"]))

    def tensors(self, weights: Weights) -> list[PlannedTensor]:
        """Return all tensors of the file; raises `ConfigError` for an unknown tensor, and if layers differ."""
        planned = [tensor for stored in weights for tensor in self._placed(weights, stored)]
        planned += self.extra(weights)
        self._check_whole(planned)
        return planned

    def _placed(self, weights: Weights, stored: str) -> Iterator[PlannedTensor]:
        name = language_name(stored)
        if name is None or (name == "lm_head.weight" and self.config.get("tie_word_embeddings", True)):
            return
        if name == "lm_head.weight" and not self.supports_untied:
            raise self.refuse("its output matrix is not tied to the embeddings, which llama.cpp does not support")
        yield from self.convert(weights, stored, name)

    def convert(self, weights: Weights, stored: str, name: str) -> Iterator[PlannedTensor]:
        """Yield the tensors that represent the tensor `name`; `stored` is its name in the checkpoint."""
        offset = self.norm_offset if name.endswith("norm.weight") else 0.0
        if self.permutes(name):
            yield fixed(self.target(name), self.permuted(name, weights.tensor(stored)))
        else:
            yield weights.planned(stored, self.target(name), offset=offset)

    def target(self, name: str) -> str:
        """Return the name of a tensor in the file."""
        target = self.names.get_name(name, (".weight", ".bias"))
        if target is None:
            raise self.refuse(f"its tensor {name} has no place in llama.cpp's {self.name}")
        return target

    def permutes(self, name: str) -> bool:
        """Return True if the rows of a tensor have another order in the file."""
        return bool(re.search(r"\.self_attn\.[qk]_proj\.", name))

    def permuted(self, name: str, value: Tensor) -> Tensor:
        """Reorder the rows of queries and keys: transformers rotates halves of a head, llama.cpp neighboring pairs."""
        heads = value.shape[0] // self.head_dim
        return value.unflatten(0, (heads, 2, self.head_dim // 2)).transpose(1, 2).reshape(value.shape)

    def extra(self, weights: Weights) -> list[PlannedTensor]:
        """Return the tensors that are not in the checkpoint."""
        rope = self.rope()
        if rope.get("rope_type") != "llama3":
            return []
        return [fixed("rope_freqs.weight", self._llama3_factors(rope))]

    def _llama3_factors(self, rope: Mapping[str, Any]) -> Tensor:
        """Return the divisor of each rotary frequency [head_dim / 2] (Llama 3.1 scales only long waves)."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        waves = 2 * math.pi * rope["rope_theta"] ** exponents
        turns = rope["original_max_position_embeddings"] / waves
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        share = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 / ((1 - share) / factor + share)).float()

    def _check_whole(self, planned: list[PlannedTensor]) -> None:
        """Raise `ConfigError` if a layer lacks a tensor of another layer; llama.cpp fails only when it loads."""
        layers: list[set[str]] = [set() for _ in range(self.layers)]
        for tensor in planned:
            match = re.fullmatch(r"blk\.(\d+)\.(.+)", tensor.name)
            if match:
                layers[int(match[1])].add(match[2])
        for index, parts in enumerate(layers):
            missing = sorted(set().union(*layers) - parts)
            if missing or not parts:
                raise self.refuse(f"layer {index} lacks {missing[0] if missing else 'all its tensors'}")


class Gemma(Family):
    """Gemma: norm weights relative to 1, tied embeddings, an explicit head dimension."""

    arch = gguf.MODEL_ARCH.GEMMA
    activations = ("gelu_pytorch_tanh", "gelu")
    norm_offset = 1.0
    supports_untied = False

    def permutes(self, name: str) -> bool:
        """Return False: llama.cpp rotates halves of Gemma's heads, like transformers."""
        return False

    def check(self) -> None:
        """Also check the divisor of attention scores: in llama.cpp it is the root of the head dimension."""
        super().check()
        scalar = self.config.get("query_pre_attn_scalar", self.head_dim)
        if scalar != self.scores_divisor():
            raise self.refuse(
                f"its query_pre_attn_scalar is {scalar}, and llama.cpp divides by the root of {self.scores_divisor()}"
            )
        if self.config.get("use_bidirectional_attention") not in (None, False):
            raise self.refuse("its attention is bidirectional, as in models of text embeddings")

    def scores_divisor(self) -> int:
        """Return the number whose square root divides the attention scores in llama.cpp."""
        return self.head_dim


class Gemma2(Gemma):
    """Gemma 2: sliding-window attention in every other layer, capped attention scores and logits."""

    arch = gguf.MODEL_ARCH.GEMMA2
    published_period, writes_windows = 2, False
    """Period of full-attention layers in the published models, known to llama.cpp; and True to always write the
    pattern of windows. Otherwise it is written only for models with another pattern."""

    def scores_divisor(self) -> int:
        """Return the divisor; that of the 27B model (46 layers) is its width per head."""
        wide = self.layers == 46
        return self.config["hidden_size"] // self.config["num_attention_heads"] if wide else self.head_dim

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Add the window, the layers that use it, and the caps."""
        super().describe(writer)
        writer.add_sliding_window(self.config["sliding_window"])
        published = [(index + 1) % self.published_period > 0 for index in range(self.layers)]
        if self.writes_windows or self.windowed() != published:
            writer.add_sliding_window_pattern(self.windowed())
        for key, add in (
            ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
            ("final_logit_softcapping", writer.add_final_logit_softcapping),
        ):
            if self.config.get(key):
                add(float(self.config[key]))

    def windowed(self) -> list[bool]:
        """Return for each layer whether it uses the sliding window."""
        return [kind == "sliding_attention" for kind in self.config["layer_types"]]
