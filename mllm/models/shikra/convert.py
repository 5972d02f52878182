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
from mllm.files import replaced_folder, write_json
from mllm.models.backbone.checkpoint_folder import find_checkpoint
from mllm.models.backbone.load_errors import explained
from mllm.models.backbone.loading import load_config
from mllm.models.shikra.conversation import vicuna_template
from mllm.models.shikra.projector import ACTIVATIONS, is_single, projector_tensors, to_llava
from mllm.models.shikra.shikra import PAD, clip_vision_config
from mllm.structures import IMAGE

PATCH, START, END = "<im_patch>", "<im_start>", "<im_end>"
"""Shikra's tokens: one for each patch of an image, and those around an image."""
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
LEAST_NORM = 0.05
"""The mean of a LLaMA's final norm is above 1; that of the difference of two LLaMAs is near 0."""

FOREIGN = {
    *("model_type", "architectures", "auto_map", "transformers_version", "_name_or_path", "torch_dtype", "dtype"),
    *("freeze_mm_mlp_adapter", "tune_mm_mlp_adapter", "tune_mm_vision_resampler", "unfreeze_mm_vision_tower"),
    *("use_mm_proj", "mm_vision_select_feature", "mm_use_im_patch_token", "image_aspect_ratio", "image_grid_pinpoints"),
    *("mm_resampler_type", "tokenizer_model_max_length", "tokenizer_padding_side", "pretrain_mm_mlp_adapter"),
    *("mm_vision_tower", "mm_hidden_size", "mm_projector_type", "mm_vision_select_layer", "mm_use_im_start_end"),
}
"""Keys of the original configs that a LLaMA does not have."""

logger = logging.getLogger(__name__)


def convert(model: str | Path, folder: str | Path, vision_tower: str | None = None) -> Path:
    """Convert the checkpoint `model`, write it to `folder` one file of weights at a time, and return the folder.

    `vision_tower` is the CLIP that it was trained with (None: as its config says). Raises `ConfigError` where `model`
    is in another layout, is a delta of weights, or holds tensors of no known place.
    """
    source, folder = Path(model).expanduser(), Path(folder)
    settings = _settings(source)
    tower = find_checkpoint(vision_tower or settings["mm_vision_tower"])
    text = LlamaConfig.from_dict({key: value for key, value in settings.items() if key not in FOREIGN})
    vision = clip_vision_config(load_config(tower), tower)
    processor = _processor(source, tower, vision.patch_size)
    rows = max(settings["vocab_size"], len(processor.tokenizer))
    text.vocab_size = rows
    kind: Any = LlavaConfig  # its signature lacks what every config takes
    with replaced_folder(folder) as temporary:
        written, projector = _write_language(source, temporary, rows)
        config = kind(
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
        written |= _write_rest(temporary, written, to_llava(projector), tower, config)
        _refuse_incomplete(config, written, source)
        _write_index(temporary, written)
        config.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    logger.info("%s became a LLaVA in %s", source, folder)
    return folder


def _settings(source: Path) -> dict[str, Any]:
    """Return the config.json of the original checkpoint."""
    path = source / "config.json"
    if not path.is_file():
        raise ConfigError(f"--model {source} is no folder with a config.json; download the whole checkpoint first")
    settings = json.loads(path.read_text(encoding="utf-8"))
    if "text_config" in settings:
        raise ConfigError(f"--model {source} is a LLaVA in transformers' layout already: it needs no conversion")
    if "mm_vision_tower" not in settings:
        raise ConfigError(
            f"--model {source} is a '{settings.get('model_type')}' checkpoint without mm_vision_tower in its "
            f"config.json, so it is neither LLaVA 1.5 nor Shikra"
        )
    if "delta" in source.name.lower():
        raise ConfigError(_is_delta(source))
    return dict(settings)


def _is_delta(source: Path) -> str:
    return (
        f"--model {source} is the difference to a LLaMA (a delta), not a model: add it to the LLaMA first, as its "
        f"authors describe (apply_delta.py), and convert the sum"
    )


def _processor(source: Path, tower: str, patch_size: int) -> LlavaProcessor:
    """Return the processor: CLIP's images and the original tokens, Shikra's around every image or LLaVA's `<image>`."""
    with explained(str(source)):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    with explained(tower):
        images = AutoImageProcessor.from_pretrained(tower)
    known = tokenizer.get_vocab()
    if PATCH in known:
        image, shown = PATCH, f"{START}{PATCH}{END} " if START in known else f"{PATCH} "
        present = [token for token in (PATCH, START, END) if token in known]
        tokenizer.add_tokens(present, special_tokens=True)
    else:
        image, shown = IMAGE, f"{IMAGE}\n"
        tokenizer.add_tokens([IMAGE], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token
        chat_template=vicuna_template(shown, tokenizer.eos_token),
        image_token=image,
    )


def _shards(source: Path) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of the original checkpoint, one file at a time."""
    files = sorted(source.glob("*.safetensors")) or sorted(source.glob("pytorch_model*.bin"))
    if not files:
        raise ConfigError(f"--model {source} holds no weights (*.safetensors or pytorch_model*.bin)")
    for number, file in enumerate(files, 1):
        logger.info("reading %s (%d of %d)", file.name, number, len(files))
        try:
            is_safe = file.suffix == ".safetensors"
            state = load_file(file) if is_safe else torch.load(file, map_location="cpu", weights_only=True)
        except (SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
            raise ConfigError(f"{file} cannot be read as tensors ({error}): download it again") from error
        yield state


def _write_language(source: Path, folder: Path, rows: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Write the language model of each file under the new names; return name -> file, and the projector."""
    written: dict[str, str] = {}
    projector: dict[str, Tensor] = {}
    for number, state in enumerate(_shards(source)):
        renamed = {}
        for name, tensor in state.items():
            if name == "model.norm.weight" and tensor.float().mean().abs() < LEAST_NORM:
                raise ConfigError(_is_delta(source))
            if "mm_projector." in name:
                projector[name] = tensor
            elif not name.endswith("rotary_emb.inv_freq"):
                renamed[_renamed(name, source)] = _grown(tensor, rows) if name in TABLES else tensor
        written |= _save(renamed, folder, number)
    return written, projector_tensors(projector, f"--model {source}")


def _renamed(name: str, source: Path) -> str:
    """Return the name of a tensor of the original in transformers' published LLaVAs."""
    if name == "lm_head.weight" or re.match(r"model\.(layers\.\d+|embed_tokens|norm)\.", name):
        return f"language_model.{name}"
    if name.startswith("model.vision_tower."):
        return "vision_tower." + name.removeprefix("model.vision_tower.").removeprefix("vision_tower.")
    raise ConfigError(
        f"--model {source} holds {name}, which neither LLaVA 1.5 nor Shikra has: it is a model of another kind"
    )


def _grown(table: Tensor, rows: int) -> Tensor:
    """Return a table of the vocabulary with the mean row for every added token."""
    missing = rows - len(table)
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(missing, -1)]) if missing > 0 else table


def _write_rest(
    folder: Path, written: Mapping[str, str], projector: dict[str, Tensor], tower: str, config: LlavaConfig
) -> dict[str, str]:
    """Write the projector and, where the original does not contain it, the vision tower."""
    rest = {f"multi_modal_projector.{name}": tensor for name, tensor in projector.items()}
    if not any(name.startswith("vision_tower.") for name in written):
        with explained(tower):
            vision = CLIPVisionModel.from_pretrained(tower, dtype=config.dtype)
        rest |= {f"vision_tower.vision_model.{name}": tensor for name, tensor in vision.state_dict().items()}
    return _save(rest, folder, len(set(written.values())))


def _save(state: Mapping[str, Tensor], folder: Path, number: int) -> dict[str, str]:
    if not state:
        return {}
    file = f"model-{number + 1:05}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / file, {"format": "pt"})
    return dict.fromkeys(state, file)


def _refuse_incomplete(config: LlavaConfig, written: Mapping[str, str], source: Path) -> None:
    """Raise `ConfigError` for weights that lack tensors of the model."""
    with torch.device("meta"):
        names = LlavaForConditionalGeneration(config).state_dict()
    own = {
        "lm_head.": "language_model.lm_head.",
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }
    wanted = {next(new + name.removeprefix(old) for old, new in own.items() if name.startswith(old)) for name in names}
    missing = sorted(wanted - written.keys())
    if missing:
        raise ConfigError(
            f"--model {source} lacks {len(missing)} tensors of a LLaVA (first {missing[0]}): the download was "
            f"interrupted, or it is a delta or an adapter"
        )


def _write_index(folder: Path, written: Mapping[str, str]) -> None:
    """Write the index of tensors and files that transformers reads."""
    size = sum((folder / file).stat().st_size for file in set(written.values()))
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": written})
