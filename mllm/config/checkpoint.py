"""What a checkpoint's own `config.json` says, read without loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mllm.errors import ConfigError

TITLES = {
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "gemma3_text": "Gemma 3",
    "gemma3n": "Gemma 3n",
    "gemma3n_text": "Gemma 3n",
    "llama": "LLaMA",
    "llava": "LLaVA",
    "paligemma": "PaliGemma",
    "t5gemma": "T5Gemma",
    "vaultgemma": "VaultGemma",
}


@dataclass(frozen=True)
class Checkpoint:
    """What rules need to know of a checkpoint; MedGemma 4B's values where it cannot be read yet."""

    model_type: str | None = None
    """transformers' name of its architecture; None where the checkpoint is not on this machine."""
    name: str = ""
    image_size: int = 896
    """Pixels."""
    patch_size: int = 14
    """Pixels."""
    image_tokens: int = 256
    is_original_llava: bool = False
    """Whether it is in the layout of LLaVA's or Shikra's own code, which transformers does not read."""

    @property
    def is_gemma(self) -> bool:
        """Whether it belongs to the Gemma family, by its architecture or, where that is unknown, by its name."""
        return "gemma" in (self.model_type or self.name).lower()

    @property
    def title(self) -> str:
        """What to call it in a sentence."""
        if self.model_type is None:
            return "Gemma 3" if "medgemma" in self.name.lower() or "gemma-3" in self.name.lower() else "Gemma"
        return TITLES.get(self.model_type, self.model_type)


def inspect_checkpoint(name_or_path: str) -> Checkpoint:
    """Reads `config.json` where `name_or_path` is a folder that has one; raises `ConfigError` where it is damaged."""
    file = Path(name_or_path) / "config.json"
    if not file.is_file():
        return Checkpoint(name=name_or_path)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is not a checkpoint's config: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} is not a checkpoint's config: it holds no JSON object")
    vision = values.get("vision_config")
    vision = vision if isinstance(vision, dict) else {}
    return Checkpoint(
        model_type=values.get("model_type"),
        name=name_or_path,
        image_size=vision.get("image_size", Checkpoint.image_size),
        patch_size=vision.get("patch_size", Checkpoint.patch_size),
        image_tokens=values.get("mm_tokens_per_image", Checkpoint.image_tokens),
        is_original_llava="mm_vision_tower" in values or values.get("model_type") == "shikra",
    )
