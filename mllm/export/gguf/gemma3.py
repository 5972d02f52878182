"""Metadata and tensor layout of Gemma 3 and the language model of Gemma 3n in GGUF files for llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from statistics import NormalDist
from typing import Any

import gguf
import torch
from torch import Tensor

from mllm.export.gguf.families import Gemma2, language_name
from mllm.export.gguf.weights import PlannedTensor, Weights, fixed


class Gemma3(Gemma2):
    """Gemma 3: five of six layers use a sliding window, with a separate rotary base."""

    arch = gguf.MODEL_ARCH.GEMMA3
    supports_untied = True
    published_period, writes_windows = 6, False

    def scores_divisor(self) -> int:
        """Return the divisor; that of the 27B model (62 layers) is its width per head."""
        wide = self.layers == 62
        return self.config["hidden_size"] // self.config["num_attention_heads"] if wide else self.head_dim

    def rope(self) -> Mapping[str, Any]:
        """Return the parameters of the rotary embedding of the full-attention layers."""
        return dict(self.config["rope_parameters"]["full_attention"])

    def check(self) -> None:
        """Also check that the rotary embedding of the window is not scaled and attention scores are not capped."""
        super().check()
        local = self.config["rope_parameters"]["sliding_attention"]
        if local.get("rope_type", "default") != "default":
            raise self.refuse("the rotary embedding of its sliding window is scaled, which llama.cpp does not do")
        if self.rope().get("rope_type") == "llama3":
            raise self.refuse("its rope scaling is llama3; llama.cpp supports it only for LLaMA")
        if self.config.get("attn_logit_softcapping"):
            raise self.refuse("its attention scores are capped, which llama.cpp supports only for Gemma 2")

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Add the rotary base of the sliding window."""
        super().describe(writer)
        writer.add_rope_freq_base_swa(float(self.config["rope_parameters"]["sliding_attention"]["rope_theta"]))


class Gemma3n(Gemma3):
    """Language model of Gemma 3n: alternating updates (AltUp), per-layer embeddings, and shared keys of last layers."""

    arch = gguf.MODEL_ARCH.GEMMA3N
    norm_offset = 0.0
    published_period, writes_windows = 5, True
    key_layers, sparse_layers = 20, 10
    """Number of layers that compute keys, and of layers with sparse activation: constants in llama.cpp."""

    def check(self) -> None:
        """Also check the values that are constants in llama.cpp: those of the published E2B and E4B models."""
        super().check()
        config = self.config
        key_layers = min(self.key_layers, self.layers)
        last_types = (
            ["sliding_attention", "full_attention"] if self.layers > key_layers else list(config["layer_types"][18:20])
        )
        fixed_values = {
            "altup_num_inputs": (config["altup_num_inputs"], 4),
            "laurel_rank": (config["laurel_rank"], 64),
            "hidden_size_per_layer_input": (config["hidden_size_per_layer_input"], 256),
            "number of layers before num_kv_shared_layers": (self.layers - config["num_kv_shared_layers"], key_layers),
            "activation_sparsity_pattern": (
                list(config["activation_sparsity_pattern"]),
                [0.95 if index < self.sparse_layers else 0.0 for index in range(self.layers)],
            ),
            "layer_types of layers 18 and 19": (list(config["layer_types"][18:20]), last_types),
        }
        for key, (value, constant) in fixed_values.items():
            if value != constant:
                raise self.refuse(f"its {key} is {value}, and llama.cpp computes Gemma 3n with {constant} only")
        if len(set(config["intermediate_size"])) > 1:
            raise self.refuse(
                "its layers have different feed-forward widths, and llama.cpp supports only one: choose equal widths"
            )

    def scores_divisor(self) -> int:
        """Return the head dimension: Gemma 3n does not divide scores and has no key for it."""
        return self.head_dim

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Add the metadata of alternating updates, shared keys and sparse activations."""
        super().describe(writer)
        config = self.config
        writer.add_altup_active_idx(config["altup_active_idx"])
        writer.add_altup_num_inputs(config["altup_num_inputs"])
        writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
        writer.add_shared_kv_layers(config["num_kv_shared_layers"])
        normal = NormalDist()
        shares = config["activation_sparsity_pattern"]
        writer.add_activation_sparsity_scale([normal.inv_cdf(share) if share else 0.0 for share in shares])

    def convert(self, weights: Weights, stored: str, name: str) -> Iterator[PlannedTensor]:
        """Yield the tensors of `name`: embeddings get the larger vocabulary; `extra` yields the AltUp projections."""
        if re.search(r"\.altup_(unembed_)?projections\.", name):
            return
        if name == "model.embed_tokens.weight":
            yield weights.planned(stored, self.target(name), rows=self._vocabulary(weights))
        elif name == "model.embed_tokens_per_layer.weight":
            yield self._per_layer(weights, stored, self.target(name))
        else:
            yield from super().convert(weights, stored, name)

    def target(self, name: str) -> str:
        """Return the name of a tensor in the file; names that end in `_scale` get the suffix `.weight`."""
        target = super().target(name)
        return f"{target}.weight" if target.endswith("_scale") else target

    def extra(self, weights: Weights) -> list[PlannedTensor]:
        """Return the two stacks of projections, and zeros for shared keys and values."""
        stored = {name: original for original in weights if (name := language_name(original)) is not None}
        stacks = []
        for part, target in (("altup_projections", "altup_proj"), ("altup_unembed_projections", "altup_unembd_proj")):
            parts = [name for name in stored if name.startswith(f"model.{part}.")]
            if len(parts) != self.config["altup_num_inputs"] - 1:
                raise self.refuse(f"it has {len(parts)} {part}")
            stacks.append(self._stacked(weights, [stored[name] for name in sorted(parts)], f"{target}.weight"))
        absent = []
        for layer in range(self.key_layers, self.layers):
            for part in ("k_proj", "v_proj", "k_norm"):
                name = f"model.layers.{layer}.self_attn.{part}.weight"
                if name not in stored:
                    shape = weights.shapes[stored[f"model.layers.0.self_attn.{part}.weight"]]
                    absent.append(fixed(self.target(name), torch.zeros(1).expand(shape)))
        return stacks + absent

    def _per_layer(self, weights: Weights, stored: str, target: str) -> PlannedTensor:
        """Return the per-layer embeddings; tokens beyond the table have those of token 0, as in transformers."""
        size, *width = weights.shapes[stored]

        def read(start: int, stop: int) -> Tensor:
            rows = weights.read(stored, start, stop)
            if stop > size:
                rows[max(size - start, 0) :] = weights.read(stored, 0, 1)
            return rows

        return PlannedTensor(target, (self._vocabulary(weights), *width), read)

    def _stacked(self, weights: Weights, names: list[str], target: str) -> PlannedTensor:
        """Return matrices [E, E] as one tensor [matrices, E, E]; each is read when it is written."""

        def read(start: int, stop: int) -> Tensor:
            return torch.stack([weights.tensor(name) for name in names[start:stop]])

        return PlannedTensor(target, (len(names), *weights.shapes[names[0]]), read)

    def _vocabulary(self, weights: Weights) -> int:
        """Return the number of rows of the larger embedding table."""
        tables = [name for name in weights if name.endswith(("embed_tokens.weight", "embed_tokens_per_layer.weight"))]
        return max(weights.shapes[name][0] for name in tables if language_name(name) is not None)
