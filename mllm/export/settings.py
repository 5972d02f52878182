"""Encoding settings of an exported folder: `mllm.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.files import write_json
from mllm.run_files import SETTINGS

KEYS = (
    *("type", "image_size", "image_token_len", "max_length", "system", "turn_end", "chat_template", "template_args"),
    *("heads", "box_format", "pad_to_square", "fuse_vision_layers", "part", "train_vision"),
    *("trainable", "from_scratch", "init_seed"),
)
"""Common keys of `model_args` that influence how a sample is encoded or an output decoded, or which weights an adapter
contains and to which base they belong; not precision or the settings of a LoRA."""
WHOLE = {"trainable": "lora", "from_scratch": False, "init_seed": 0}
"""Values of these keys for a folder that contains all weights of a model."""
BASE = "base"
"""The key of the base model, for a folder without a LoRA (whose own config would name it)."""


def encoding_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of `mllm.json` that `values` contains, such as those of `asdict(model_args)`.

    They are `KEYS` and the keys that only the family of the model type has.
    """
    keys = (*KEYS, *FAMILIES.find(values["type"]).own_keys)
    return {key: values[key] for key in keys if key in values}


def write_settings(folder: Path, settings: Mapping[str, Any], base: str | None = None) -> Path:
    """Write the encoding settings in `settings`, and the base model if one is passed, to `mllm.json` in `folder`."""
    values = encoding_settings(settings)
    return write_json(folder / SETTINGS, values if base is None else {**values, BASE: base})


def read_base(folder: str | Path) -> str | None:
    """Return the base model that `mllm.json` in `folder` names; None if there is none."""
    path = Path(folder) / SETTINGS
    if not path.is_file():
        return None
    base = json.loads(path.read_text(encoding="utf-8")).get(BASE)
    return None if base is None else str(base)


def read_settings(folder: str | Path, **defaults: Any) -> dict[str, Any]:
    """Return the settings in `folder`; `defaults` without `mllm.json`, as in an adapter of another tool.

    Raises `ConfigError` if the file cannot be read, or if no imported module registers its type.
    """
    path = Path(folder) / SETTINGS
    if not path.is_file():
        return defaults
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); export the run again") from error
    if not isinstance(settings, dict) or "type" not in settings:
        raise ConfigError(f"{path} has no key 'type'; export the run again")
    try:
        return encoding_settings(settings)
    except ConfigError as error:  # a type that another module registers
        raise ConfigError(f"{path}: {error}; import the module that registers it with --import MODULE") from error
