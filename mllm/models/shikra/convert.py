"""Conversion of checkpoints of LLaVA's and Shikra's own code to LLaVAs that transformers loads."""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from mllm.errors import ConfigError
from mllm.files import replaced_folder
from mllm.models.adapters.written import compare_written
from mllm.models.backbone.checkpoint_folder import find_checkpoint
from mllm.models.backbone.load_errors import explained
from mllm.models.backbone.loading import load_config
from mllm.models.backbone.weight_files import write_index
from mllm.models.shikra.projector import ACTIVATIONS, is_single, projector_tensors, to_llava
from mllm.models.shikra.shikra import build_llava_processor, clip_vision_config
from mllm.structures import IMAGE

PATCH, START, END = "<im_patch>", "<im_start>", "<im_end>"
"""Tokens of Shikra: one per patch of an image, and those before and after an image."""
VOCABULARY_WEIGHTS = ("model.embed_tokens.weight", "lm_head.weight")
MIN_NORM = 0.05
"""Smallest mean of the final norm of a LLaMA. Real values are above 1, and differences of two LLaMAs are near 0."""

ORIGINAL_KEYS = {
    *("model_type", "architectures", "auto_map", "transformers_version", "_name_or_path", "torch_dtype", "dtype"),
    *("freeze_mm_mlp_adapter", "tune_mm_mlp_adapter", "tune_mm_vision_resampler", "unfreeze_mm_vision_tower"),
    *("use_mm_proj", "mm_vision_select_feature", "mm_use_im_patch_token", "image_aspect_ratio", "image_grid_pinpoints"),
    *("mm_resampler_type", "tokenizer_model_max_length", "tokenizer_padding_side", "pretrain_mm_mlp_adapter"),
    *("mm_vision_tower", "mm_hidden_size", "mm_projector_type", "mm_vision_select_layer", "mm_use_im_start_end"),
}
"""Keys of the original configs that LlamaConfig does not have."""

logger = logging.getLogger(__name__)


def convert(model: str | Path, folder: str | Path, vision_tower: str | None = None) -> Path:
    """Convert the checkpoint `model`, write it to `folder` one file of weights at a time, and return the folder.

    `vision_tower` is the CLIP that it was trained with (None: the one in its config). Raises `ConfigError` if `model`
    has another layout, is a delta of weights, or has unknown tensors.
    """
    source, folder = Path(model).expanduser(), Path(folder)
    settings = _settings(source)
    tower = find_checkpoint(vision_tower or settings["mm_vision_tower"])
    text = LlamaConfig.from_dict({key: value for key, value in settings.items() if key not in ORIGINAL_KEYS})
    vision = clip_vision_config(load_config(tower), tower)
    processor = _processor(source, tower, vision.patch_size)
    rows = max(settings["vocab_size"], len(processor.tokenizer))
    text.vocab_size = rows
    config_class: Any = LlavaConfig  # the signature lacks the common arguments of configs
    with replaced_folder(folder) as temporary:
        written, projector = _write_language(source, temporary, rows)
        config = config_class(
            text_config=text,
            vision_config=vision,
            image_token_index=processor.image_token_id,
            image_seq_length=(vision.image_size // vision.patch_size) ** 2,
            projector_hidden_act=ACTIVATIONS[is_single(projector)],
            vision_feature_layer=settings.get("mm_vision_select_layer", -2),
            vision_feature_select_strategy="default",
            bos_token_id=text.bos_token_id,
            eos_token_id=text.eos_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
            architectures=["LlavaForConditionalGeneration"],
            dtype=next(iter(projector.values())).dtype,
        )
        written |= _write_projector_and_tower(temporary, written, to_llava(projector), tower, config)
        _refuse_incomplete(config, written, source)
        _write_index(temporary, written)
        config.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    logger.info("%s converted to a LLaVA in %s", source, folder)
    return folder


def _settings(source: Path) -> dict[str, Any]:
    """Return the config.json of the original checkpoint."""
    path = source / "config.json"
    if not path.is_file():
        raise ConfigError(f"--model {source} is not a folder with a config.json; download the whole checkpoint first")
    settings = json.loads(path.read_text(encoding="utf-8"))
    if "text_config" in settings:
        raise ConfigError(f"--model {source} already has the layout of transformers and needs no conversion")
    if "mm_vision_tower" not in settings:
        raise ConfigError(
            f"--model {source} is a '{settings.get('model_type')}' checkpoint, not LLaVA 1.5 or Shikra: its "
            f"config.json has no mm_vision_tower"
        )
    if "delta" in source.name.lower():
        raise ConfigError(_delta_message(source))
    return dict(settings)


def _delta_message(source: Path) -> str:
    """Return the message about a delta of weights."""
    return (
        f"--model {source} is a delta, the difference to a LLaMA: add it to the LLaMA with apply_delta.py of its "
        f"authors and convert the sum"
    )


def _processor(source: Path, tower: str, patch_size: int) -> LlavaProcessor:
    """Return the processor: the image processor of CLIP and the original tokens for images, of Shikra or of LLaVA."""
    with explained(str(source)):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    with explained(tower):
        images = AutoImageProcessor.from_pretrained(tower)
    vocabulary = tokenizer.get_vocab()
    if PATCH in vocabulary:
        image, image_text = PATCH, f"{START}{PATCH}{END} " if START in vocabulary else f"{PATCH} "
        present = [token for token in (PATCH, START, END) if token in vocabulary]
        tokenizer.add_tokens(present, special_tokens=True)
    else:
        image, image_text = IMAGE, f"{IMAGE}\n"
        tokenizer.add_tokens([IMAGE], special_tokens=True)
    return build_llava_processor(images, tokenizer, patch_size, image, image_text)


def _shards(source: Path) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of the original checkpoint, one file at a time."""
    files = sorted(source.glob("*.safetensors")) or sorted(source.glob("pytorch_model*.bin"))
    if not files:
        raise ConfigError(f"--model {source} has no weights (*.safetensors or pytorch_model*.bin)")
    for number, file in enumerate(files, 1):
        logger.info("reading %s (%d of %d)", file.name, number, len(files))
        try:
            is_safe = file.suffix == ".safetensors"
            state = load_file(file) if is_safe else torch.load(file, map_location="cpu", weights_only=True)
        except (SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
            raise ConfigError(f"{file} cannot be read as tensors ({error}): download it again") from error
        yield state


def _write_language(source: Path, folder: Path, rows: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Write the language model with its new names, one file per source file.

    Return the file of each tensor, and the tensors of the projector.
    """
    written: dict[str, str] = {}
    projector: dict[str, Tensor] = {}
    for number, state in enumerate(_shards(source)):
        renamed = {}
        for name, tensor in state.items():
            if name == "model.norm.weight" and tensor.float().mean().abs() < MIN_NORM:
                raise ConfigError(_delta_message(source))
            if "mm_projector." in name:
                projector[name] = tensor
            elif not name.endswith("rotary_emb.inv_freq"):
                renamed[_new_name(name, source)] = _extended(tensor, rows) if name in VOCABULARY_WEIGHTS else tensor
        written |= _save(renamed, folder, number)
    return written, projector_tensors(projector, f"--model {source}")


def _new_name(name: str, source: Path) -> str:
    """Return the name of an original tensor in the published LLaVAs of transformers."""
    if name == "lm_head.weight" or re.match(r"model\.(layers\.\d+|embed_tokens|norm)\.", name):
        return f"language_model.{name}"
    if name.startswith("model.vision_tower."):
        return "vision_tower." + name.removeprefix("model.vision_tower.").removeprefix("vision_tower.")
    raise ConfigError(f"--model {source} is not LLaVA 1.5 or Shikra: it has the unknown tensor {name}")


def _extended(table: Tensor, rows: int) -> Tensor:
    """Return a vocabulary weight [V, D] with `rows` rows; added rows are the mean row."""
    missing = rows - len(table)
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(missing, -1)]) if missing > 0 else table


def _write_projector_and_tower(
    folder: Path, written: Mapping[str, str], projector: dict[str, Tensor], tower: str, config: LlavaConfig
) -> dict[str, str]:
    """Write the projector, and the vision tower if the original does not contain it."""
    tensors = {f"multi_modal_projector.{name}": tensor for name, tensor in projector.items()}
    if not any(name.startswith("vision_tower.") for name in written):
        with explained(tower):
            vision = CLIPVisionModel.from_pretrained(tower, dtype=config.dtype)
        tensors |= {f"vision_tower.vision_model.{name}": tensor for name, tensor in vision.state_dict().items()}
    return _save(tensors, folder, len(set(written.values())))


def _save(state: Mapping[str, Tensor], folder: Path, number: int) -> dict[str, str]:
    if not state:
        return {}
    file = f"model-{number + 1:05}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / file, {"format": "pt"})
    compare_written(folder / file, state, set(state))
    return dict.fromkeys(state, file)


def _refuse_incomplete(config: LlavaConfig, written: Mapping[str, str], source: Path) -> None:
    """Raise `ConfigError` for weights that lack tensors of the model."""
    with torch.device("meta"):
        names = LlavaForConditionalGeneration(config).state_dict()
    published_prefixes = {
        "lm_head.": "language_model.lm_head.",
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }
    expected = {
        next(new + name.removeprefix(old) for old, new in published_prefixes.items() if name.startswith(old))
        for name in names
    }
    missing = sorted(expected - written.keys())
    if missing:
        raise ConfigError(
            f"--model {source} lacks {len(missing)} tensors of a LLaVA (first {missing[0]}): the download was "
            f"interrupted, or it is a delta or an adapter"
        )


def _write_index(folder: Path, written: Mapping[str, str]) -> None:
    """Write the index of tensors and files that transformers reads."""
    size = sum((folder / file).stat().st_size for file in set(written.values()))
    write_index(folder, written, total_size=size)
