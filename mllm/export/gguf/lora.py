"""Export of a PEFT LoRA as a GGUF adapter, which llama.cpp applies to the GGUF file of the base."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import gguf
from peft import LoraConfig
from torch import Tensor

from mllm.errors import ConfigError
from mllm.export.gguf.families import Family, language_name
from mllm.export.gguf.general import read_origin
from mllm.export.gguf.model import open_family
from mllm.export.gguf.weights import PlannedTensor, fixed
from mllm.export.gguf.writer import TYPES, kind_of, write_gguf
from mllm.models.adapters.files import KEY, SavedAdapter, find_adapter, read_adapter
from mllm.run_files import TRAINED as HEADS

PLAIN = ("f32", "f16", "bf16")
"""Types of an adapter."""


def export_adapter(adapter: Path, base: str, out: Path, kind: str) -> Path:
    """Write the LoRA in `adapter` to `out`. Of its base model `base` only the config is read.

    Raises `ConfigError` for adapters that llama.cpp does not support: LoRA outside the layers of the language model,
    DoRA, heads.
    """
    if kind not in PLAIN:
        raise ConfigError(f"--type {kind} is not a type of an adapter: choose one of {', '.join(PLAIN)}")
    folder = find_adapter(adapter)
    if (folder / HEADS).is_file():
        raise ConfigError(f"'{adapter}' cannot become a GGUF adapter: more than a LoRA was trained ({HEADS})")
    saved = read_adapter(folder)
    family, config = open_family(base)
    tensors = list(_tensors(saved, family))
    matrix_type, file_type = TYPES[kind]
    origin = read_origin(folder, config["model_type"], out.stem, base=base)

    def describe(writer: gguf.GGUFWriter) -> None:
        origin.describe(writer, "adapter")
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(saved.config.lora_alpha))
        writer.add_file_type(file_type)

    return write_gguf(out, family.name, describe, tensors, [kind_of(tensor, matrix_type) for tensor in tensors])


def _tensors(saved: SavedAdapter, family: Family) -> Iterator[PlannedTensor]:
    """Yield both matrices of every adapted layer, A before B, with the name of the weight that they change."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in saved.tensors.items():
        match = KEY.fullmatch(key)
        assert match is not None
        pairs.setdefault(match["module"], {})[match["part"]] = tensor
    for module in sorted(pairs):
        parts = pairs[module]
        name = _name(saved, module)
        if parts.keys() != {"lora_A.weight", "lora_B.weight"}:
            unknown = (
                ", ".join(sorted(parts.keys() - {"lora_A.weight", "lora_B.weight"})) or "only one matrix of a pair"
            )
            raise _refusal(saved, f"{module} has {unknown}; llama.cpp supports only plain LoRA, so merge it instead")
        first, second = parts["lora_A.weight"].float(), parts["lora_B.weight"].float()
        if family.permutes(name):
            second = family.permuted(name, second)
        # llama.cpp scales every layer by one alpha divided by the rank of the layer.
        second = second * (_scaling(saved.config, module, first.shape[0]) * first.shape[0] / saved.config.lora_alpha)
        target = family.target(name)
        yield fixed(f"{target}.lora_a", first)
        yield fixed(f"{target}.lora_b", second)


def _name(saved: SavedAdapter, module: str) -> str:
    """Return the name of the weight of an adapted module in a plain language model; refuses other modules."""
    if re.search(r"(embed_tokens|lm_head)", module):
        raise _refusal(saved, f"it adapts {module}, which llama.cpp does not support; merge it instead")
    name = language_name(f"{module}.weight")
    if name is None:
        raise _refusal(
            saved, f"it adapts {module}, and llama.cpp applies adapters only to the language model; merge it instead"
        )
    name = name if name.startswith("model.") else f"model.{name}"
    if not re.fullmatch(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+\.weight", name):
        raise _refusal(saved, f"it adapts {module}, which is neither attention nor feed-forward; merge it instead")
    return name


def _scaling(config: LoraConfig, module: str, rank: int) -> float:
    """Return the factor of PEFT for the product of the two matrices of `module`."""
    patterns = config.alpha_pattern or {}
    matches = [alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)]
    alpha = matches[0] if matches else config.lora_alpha
    return float(alpha / (math.sqrt(rank) if config.use_rslora else rank))


def _refusal(saved: SavedAdapter, reason: str) -> ConfigError:
    return ConfigError(f"'{saved.source}' cannot become a GGUF adapter: {reason}")
