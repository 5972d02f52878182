"""`mllm.json`: the settings with which an exported folder encodes questions as in training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.files import write_json

FILE = "mllm.json"
KEYS = (
    *("type", "image_size", "image_token_len", "max_length", "system", "turn_end", "chat_template"),
    *("heads", "box_format", "pad_to_square", "fuse_vision_layers", "part", "train_vision"),
)
"""Common keys of `model_args` that change how a sample is encoded or read; precision and LoRA are not among them."""
BASE = "base"
"""The key of the base model, for a folder without a LoRA, whose own config would name it."""


def keys_of(type: str) -> list[str]:
    """Return the keys of `mllm.json` for a model type: the common ones and those that only its family has."""
    return [*KEYS, *FAMILIES.find(type).own_keys]


def write_settings(folder: Path, settings: Mapping[str, Any], base: str | None = None) -> Path:
    """Write the keys of `settings` that a model type has, and the base model, to `mllm.json` in `folder`."""
    told = {key: settings[key] for key in keys_of(settings["type"]) if key in settings}
    return write_json(folder / FILE, told if base is None else {**told, BASE: base})


def read_base(folder: str | Path) -> str | None:
    """The base model that `mllm.json` in `folder` names."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    base = json.loads(path.read_text(encoding="utf-8")).get(BASE)
    return None if base is None else str(base)


def read_settings(folder: str | Path, **defaults: Any) -> dict[str, Any]:
    """The settings in `folder`, or `defaults` where it has none, as in an adapter that was trained elsewhere.

    Raises `ConfigError` where the file is there but cannot be read.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return defaults
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); export the run again") from error
    if not isinstance(settings, dict) or "type" not in settings:
        raise ConfigError(f"{path} has no key 'type'; export the run again")
    return {key: settings[key] for key in keys_of(settings["type"]) if key in settings}
