"""Export of the vision tower and projector of Gemma 3 as an mmproj file for llama.cpp."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from mllm.errors import ConfigError
from mllm.export.gguf.general import read_origin
from mllm.export.gguf.model import refuse_foreign
from mllm.export.gguf.weights import PlannedTensor, Weights
from mllm.export.gguf.writer import TYPES, kind_of, write_gguf
from mllm.models.backbone.loading import load_config

_VISION = re.compile(r"^(model\.)?vision_tower\.(vision_model\.)?")
_PROJECTOR = re.compile(r"^(model\.)?multi_modal_projector\.")


def check_mmproj(source: str) -> tuple[dict[str, Any], int]:
    """Return the config of the checkpoint `source`, and the number of patches per side that an image token averages.

    Raises `ConfigError` for models other than Gemma 3 with images, and if the number of image tokens is not a square.
    """
    config = load_config(source).to_dict()
    refuse_foreign(source, config)
    if config["model_type"] != "gemma3":
        is_gemma3n = config["model_type"] == "gemma3n"
        reason = "llama.cpp does not support its vision tower" if is_gemma3n else "it has no vision tower"
        raise ConfigError(f"'{source}' has no mmproj file: {reason}; omit --mmproj")
    tokens, vision = config["mm_tokens_per_image"], config["vision_config"]
    side, patches = math.isqrt(tokens), vision["image_size"] // vision["patch_size"]
    if side * side != tokens or patches % side:
        raise ConfigError(f"'{source}' has no mmproj file: {tokens} image tokens do not form a square of its patches")
    return config, patches // side


def export_mmproj(folder: Path, out: Path, kind: str, *, name: str | None = None) -> Path:
    """Write the vision tower and projector in `folder` to `out`: in fp32 for `kind` 'f32', else matrices in fp16.

    For `name` see `export_model`. Raises `ConfigError` as `check_mmproj` does.
    """
    config, scale = check_mmproj(str(folder))
    tensors = _tensors(folder, config["vision_config"]["num_hidden_layers"])
    matrix_type, file_type = TYPES["f32" if kind == "f32" else "f16"]
    origin = read_origin(folder, config["model_type"], name)

    def describe(writer: gguf.GGUFWriter) -> None:
        origin.describe(writer, "mmproj")
        _describe(writer, config, scale, _image_statistics(folder))
        writer.add_file_type(file_type)

    arch = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.MMPROJ]
    return write_gguf(out, arch, describe, tensors, [kind_of(tensor, matrix_type) for tensor in tensors])


def _tensors(folder: Path, layers: int) -> list[PlannedTensor]:
    """Return the tensors of the vision tower and the projector; the names of all transformers versions are known."""
    weights, planned = Weights(folder), []
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, layers)
    for stored in weights:
        if _VISION.match(stored):
            name = _VISION.sub("vision_tower.vision_model.", stored)
        elif _PROJECTOR.match(stored):
            name = _PROJECTOR.sub("multi_modal_projector.", stored).replace("_weight", ".weight")
        else:
            continue
        target = names.get_name(name, (".weight", ".bias"))
        if target is None and ".head." in name:
            continue  # the pooling head of SigLIP, which Gemma 3 does not use
        if target is None:
            raise ConfigError(f"'{folder}' has no mmproj file: its tensor {stored} is unknown")
        # In transformers the weight of the projector's norm is relative to 1; those of SigLIP are not.
        planned.append(weights.planned(stored, target, offset=1.0 if "soft_emb_norm" in name else 0.0))
    if not any(tensor.name.startswith("v.") for tensor in planned):
        raise ConfigError(f"'{folder}' has no mmproj file: it contains no vision tower")
    return planned


def _describe(
    writer: gguf.GGUFWriter, config: Mapping[str, Any], scale: int, statistics: tuple[list[float], list[float]]
) -> None:
    vision = config["vision_config"]
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.GEMMA3)
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(vision["num_hidden_layers"])
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(vision["layer_norm_eps"])
    writer.add_vision_image_mean(statistics[0])
    writer.add_vision_image_std(statistics[1])
    writer.add_vision_use_gelu(True)
    writer.add_vision_projector_scale_factor(scale)


def _image_statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the pixel normalization; those of SigLIP if no file contains them."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text(encoding="utf-8"))
            values = values.get("image_processor", values)
            if "image_mean" in values and "image_std" in values:
                return values["image_mean"], values["image_std"]
    return [0.5] * 3, [0.5] * 3
