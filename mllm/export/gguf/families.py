"""What llama.cpp wants to know of LLaMA, Gemma and Gemma 2, and how their tensors lie in a GGUF file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import gguf
import torch
from torch import Tensor

from mllm.errors import ConfigError
from mllm.export.gguf.weights import Planned, Weights, fixed

_LANGUAGE = re.compile(r"^(model\.)?language_model\.(model\.)?")
_OTHER_TOWERS = re.compile(
    r"^(model\.)?(vision_tower|audio_tower|vision_model|multi_modal_projector|embed_vision|embed_audio)\."
)
"""Parts of a checkpoint that a language model's GGUF leaves out."""


def language_name(stored: str) -> str | None:
    """The name that a stored tensor has in a language model alone, `model.layers...`; None for another tower's."""
    if _OTHER_TOWERS.match(stored) or stored.endswith("rotary_emb.inv_freq"):
        return None
    name = _LANGUAGE.sub("model.", stored)
    return "lm_head.weight" if name.endswith("lm_head.weight") else name


class Family:
    """The language models that one architecture of llama.cpp runs; the base of all families, and LLaMA's itself."""

    arch = gguf.MODEL_ARCH.LLAMA
    activations: tuple[str, ...] = ("silu",)
    norm_offset = 0.0
    """What transformers adds to a norm's weight while it runs, and llama.cpp does not."""
    unties = True
    """Whether llama.cpp reads an output matrix of its own."""

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        """`config` is that of the language model, `source` names the checkpoint in messages."""
        self.config = config
        self.source = source
        self.layers: int = config["num_hidden_layers"]
        self.head_dim: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        self.names = gguf.get_tensor_name_map(self.arch, self.layers)

    @property
    def name(self) -> str:
        """What the architecture is called in the file."""
        return gguf.MODEL_ARCH_NAMES[self.arch]

    def refuse(self, reason: str) -> ConfigError:
        """The error for what llama.cpp cannot run of this checkpoint."""
        return ConfigError(f"'{self.source}' cannot become a GGUF: {reason}")

    def check(self) -> None:
        """Raises `ConfigError` where llama.cpp would compute something else than transformers."""
        activation = self.config.get("hidden_activation") or self.config.get("hidden_act")
        if activation not in self.activations:
            raise self.refuse(f"its activation is {activation}, and llama.cpp computes {self.name} with another")
        if self.rope().get("rope_type", "default") not in ("default", "linear", "llama3"):
            raise self.refuse(f"its rope scaling is {self.rope()['rope_type']}; default, linear and llama3 are written")

    def row_widths(self) -> set[int]:
        """How many values the rows of the layers' matrices have: what is quantized is quantized along rows."""
        inner = self.config["intermediate_size"]
        heads = self.config["num_attention_heads"] * self.head_dim
        return {self.config["hidden_size"], heads, *(inner if isinstance(inner, list) else [inner])}

    def rope(self) -> Mapping[str, Any]:
        """The rotary embedding of full attention, in transformers' words."""
        return dict(self.config.get("rope_parameters") or {})

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Adds the dimensions and constants of the architecture to the metadata."""
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

    def tensors(self, weights: Weights) -> list[Planned]:
        """All tensors of the file; raises `ConfigError` for one that has no place in it, or where layers differ."""
        planned = [tensor for stored in weights for tensor in self._placed(weights, stored)]
        planned += self.extra(weights)
        self._check_whole(planned)
        return planned

    def _placed(self, weights: Weights, stored: str) -> Iterator[Planned]:
        name = language_name(stored)
        if name is None or (name == "lm_head.weight" and self.config.get("tie_word_embeddings", True)):
            return
        if name == "lm_head.weight" and not self.unties:
            raise self.refuse("its output matrix is not the embeddings', and llama.cpp knows only tied ones")
        yield from self.convert(weights, stored, name)

    def convert(self, weights: Weights, stored: str, name: str) -> Iterator[Planned]:
        """The tensors that the one called `name` becomes; `stored` is its name in the checkpoint."""
        offset = self.norm_offset if name.endswith("norm.weight") else 0.0
        if self.permutes(name):
            yield fixed(self.target(name), self.permuted(name, weights.whole(stored)))
        else:
            yield weights.planned(stored, self.target(name), offset=offset)

    def target(self, name: str) -> str:
        """The name of a tensor in the file."""
        target = self.names.get_name(name, (".weight", ".bias"))
        if target is None:
            raise self.refuse(f"its tensor {name} has no place in llama.cpp's {self.name}")
        return target

    def permutes(self, name: str) -> bool:
        """Whether the rows of a tensor are in another order in the file."""
        return bool(re.search(r"\.self_attn\.[qk]_proj\.", name))

    def permuted(self, name: str, value: Tensor) -> Tensor:
        """Rows of queries and keys: transformers rotates halves of a head, llama.cpp neighbors."""
        heads = value.shape[0] // self.head_dim
        return value.unflatten(0, (heads, 2, self.head_dim // 2)).transpose(1, 2).reshape(value.shape)

    def extra(self, weights: Weights) -> list[Planned]:
        """Tensors that the checkpoint does not have."""
        rope = self.rope()
        if rope.get("rope_type") != "llama3":
            return []
        return [fixed("rope_freqs.weight", self._llama3_factors(rope))]

    def _llama3_factors(self, rope: Mapping[str, Any]) -> Tensor:
        """What each rotary frequency [head_dim / 2] is divided by (Llama 3.1: long waves only)."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        waves = 2 * math.pi * rope["rope_theta"] ** exponents
        turns = rope["original_max_position_embeddings"] / waves
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        share = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 / ((1 - share) / factor + share)).float()

    def _check_whole(self, planned: list[Planned]) -> None:
        """Refuses a checkpoint in which a layer lacks what another has; llama.cpp would say so only when it loads."""
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
    """Gemma: norms that count from 1, tied embeddings, a head dimension of its own."""

    arch = gguf.MODEL_ARCH.GEMMA
    activations = ("gelu_pytorch_tanh", "gelu")
    norm_offset = 1.0
    unties = False

    def permutes(self, name: str) -> bool:
        """Never: llama.cpp rotates halves of Gemma's heads, as transformers does."""
        return False

    def check(self) -> None:
        """As for every family; llama.cpp divides attention scores by the root of the head dimension."""
        super().check()
        scalar = self.config.get("query_pre_attn_scalar", self.head_dim)
        if scalar != self.scores_divisor():
            raise self.refuse(
                f"its query_pre_attn_scalar is {scalar}, and llama.cpp divides by the root of {self.scores_divisor()}"
            )
        if self.config.get("use_bidirectional_attention") not in (None, False):
            raise self.refuse("its attention looks forwards too, as in models that embed texts")

    def scores_divisor(self) -> int:
        """The number by whose root llama.cpp divides attention scores."""
        return self.head_dim


class Gemma2(Gemma):
    """Gemma 2: every other layer looks at a window, attention scores and logits are capped."""

    arch = gguf.MODEL_ARCH.GEMMA2
    published_period, says_windows = 2, False
    """The layers of the published models repeat so, which llama.cpp knows; others are told, or all of a family's."""

    def scores_divisor(self) -> int:
        """The 27B model, known by its 46 layers, divides by its width per head."""
        wide = self.layers == 46
        return self.config["hidden_size"] // self.config["num_attention_heads"] if wide else self.head_dim

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Adds the window, the layers that look at it, and the caps."""
        super().describe(writer)
        writer.add_sliding_window(self.config["sliding_window"])
        known = [(index + 1) % self.published_period > 0 for index in range(self.layers)]
        if self.says_windows or self.windowed() != known:
            writer.add_sliding_window_pattern(self.windowed())
        for key, add in (
            ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
            ("final_logit_softcapping", writer.add_final_logit_softcapping),
        ):
            if self.config.get(key):
                add(float(self.config[key]))

    def windowed(self) -> list[bool]:
        """Whether each layer looks at the window alone."""
        return [kind == "sliding_attention" for kind in self.config["layer_types"]]
