"""Facts about a checkpoint, read from its `config.json` without loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mllm.errors import ConfigError
from mllm.family import FAMILIES


@dataclass(frozen=True)
class Checkpoint:
    """Facts that rules need; sizes of MedGemma 4B if the checkpoint is not on this machine."""

    model_type: str | None = None
    """Name of the architecture in transformers; None if the checkpoint is not on this machine."""
    name: str = ""
    image_size: int = 896
    """Pixels."""
    patch_size: int = 14
    """Pixels."""
    image_tokens: int = 256
    keys: frozenset[str] = frozenset()
    """Top-level keys of its config.json."""

    @property
    def is_gemma(self) -> bool:
        """True for a Gemma model, by its architecture or, if that is unknown, by its name."""
        return "gemma" in (self.model_type or self.name).lower()

    @property
    def title(self) -> str:
        """Name of the architecture in messages."""
        if self.model_type is None:
            return str(FAMILIES.look_up("names", self.name) or "Gemma")
        return FAMILIES.title(self.model_type)


def inspect_checkpoint(name_or_path: str) -> Checkpoint:
    """Return the facts in the `config.json` of a folder, or only the name if there is no such file.

    Raises:
        ConfigError: The file is damaged.
    """
    file = Path(name_or_path) / "config.json"
    if not file.is_file():
        return Checkpoint(name=name_or_path)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is not the config of a checkpoint: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} is not the config of a checkpoint: it is not a JSON object")
    vision = values.get("vision_config")
    vision = vision if isinstance(vision, dict) else {}
    return Checkpoint(
        model_type=values.get("model_type"),
        name=name_or_path,
        image_size=vision.get("image_size", Checkpoint.image_size),
        patch_size=vision.get("patch_size", Checkpoint.patch_size),
        image_tokens=values.get("mm_tokens_per_image", Checkpoint.image_tokens),
        keys=frozenset(values),
    )
