"""`mllm.json`: what an exported folder must say so that a question is encoded as it was in training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm.errors import ConfigError
from mllm.files import write_json

FILE = "mllm.json"
KEYS = ("type", "image_size", "image_token_len", "max_length", "system", "turn_end")
"""The keys of `model_args` that change how a sample is encoded; precision and LoRA are not among them."""


def write_settings(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Writes the `KEYS` of `settings` to `mllm.json` in `folder`."""
    return write_json(folder / FILE, {key: settings[key] for key in KEYS})


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
    return {key: settings[key] for key in KEYS if key in settings}
