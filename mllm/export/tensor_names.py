"""Comparison of the tensors of a folder with a new model of its config.json, and with the model that was written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from mllm.errors import ConfigError
from mllm.models.adapters.written import compare_written
from mllm.models.backbone.streamed import Unstreamable, own_tensors, stored_names

logger = logging.getLogger(__name__)

AUTO: tuple[tuple[Any, Any], ...] = (
    (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
    (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, AutoModelForSeq2SeqLM),
    (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
)


def new_model(folder: str | Path) -> PreTrainedModel | None:
    """Return the model that the Auto classes of transformers build from the config.json of a folder, without weights.

    Returns None if they build another architecture than the config names, as for checkpoints with custom code.
    """
    config = AutoConfig.from_pretrained(folder)
    for mapping, auto in AUTO:
        if type(config) in mapping and mapping[type(config)].__name__ in (config.architectures or []):
            with torch.device("meta"):
                model = auto.from_config(config)
            assert isinstance(model, PreTrainedModel)
            return model
    return None


def check_names(folder: Path) -> int | None:
    """Return the number of tensors in the weight files; raises `ConfigError` if stock transformers needs other tensors.

    Returns None if names are not sufficient: transformers does not know the architecture, or rearranges its tensors.
    """
    model = new_model(folder)
    if model is None:
        return None
    expected = own_tensors(model)
    missing, count = set(expected) - computed(model), 0
    try:
        files = stored_names(model, folder)
    except Unstreamable:
        return None
    for file, names in files.items():
        with safe_open(file, "pt") as opened:
            for key, name in names.items():
                if name is None:
                    raise ConfigError(f"{file} contains {key}, which a {type(model).__name__} does not have")
                shape = tuple(opened.get_slice(key).get_shape())
                if shape != tuple(expected[name].shape):
                    raise ConfigError(
                        f"{file}: {key} has shape {shape}, and a {type(model).__name__} of the folder's config.json "
                        f"needs {tuple(expected[name].shape)}"
                    )
                missing.discard(name)
                count += 1
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    if missing:
        raise ConfigError(f"{folder} lacks {len(missing)} tensors of a {type(model).__name__} (first {min(missing)})")
    return count


def computed(model: PreTrainedModel) -> set[str]:
    """Return the names of the tensors that transformers does not save but computes, such as positions of Marian."""
    return set(model._keys_to_ignore_on_save or ())


def compare_weights(model: PreTrainedModel, folder: Path) -> None:
    """Raise `ConfigError` if the weight files in `folder` differ from the weights of `model`, bit by bit.

    Weights that transformers rearranges while it writes them are not compared.
    """
    tensors = own_tensors(model)
    try:
        files = stored_names(model, folder)
    except Unstreamable as reason:
        logger.info("the written weights are not compared with those in memory: %s", reason)
        return
    for file, names in files.items():
        known = {key: tensors[name] for key, name in names.items() if name is not None}
        compare_written(file, known, set(names))
    written = {tensors[name].data_ptr() for names in files.values() for name in names.values() if name is not None}
    needed = {name: tensor for name, tensor in tensors.items() if name not in computed(model)}
    if lost := [name for name, tensor in needed.items() if tensor.data_ptr() not in written]:  # tied ones share memory
        raise ConfigError(f"{folder} lacks {len(lost)} weights of the model (first {min(lost)}): export the run again")
