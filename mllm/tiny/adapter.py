"""Tiny LoRA adapters for the tiny checkpoints, also with the tensor names of older transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mllm.files import replaced_folder, replaced_path

SUFFIXES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Targets of published MedGemma adapters; as suffixes they also match q, k and v of the SigLIP tower."""

LAYOUTS = {
    "current": {},
    "4.52": {"model.vision_tower.": "model.vision_tower.vision_model."},
    "4.50": {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower.vision_model."},
}
"""Version of transformers (4.50 to 4.51, or 4.52 to 4.57) -> current and former module prefixes of Gemma 3."""


def ensure_tiny_adapter(base_folder: str | Path, rank: int) -> Path:
    """Return the adapter of `rank` in the parent of `base_folder`, and write it if it does not exist."""
    base_folder = Path(base_folder)
    folder = base_folder.with_name(f"{base_folder.name}-adapter-r{rank}")
    if (folder / "adapter_config.json").is_file():
        return folder
    return write_tiny_adapter(base_folder, folder, rank, alpha=rank)


def write_tiny_adapter(
    base_folder: str | Path,
    folder: str | Path,
    rank: int = 4,
    alpha: float = 8,
    *,
    seed: int = 0,
    targets: list[str] | str | None = None,
    layout: str = "current",
    **lora: Any,
) -> Path:
    """Write a PEFT LoRA adapter of the checkpoint in `base_folder`. Its B matrices are random, so it changes outputs.

    `targets` are PEFT's `target_modules`, `lora` further options of `peft.LoraConfig`, such as `use_dora=True`, and
    `layout` is one of `LAYOUTS`.
    """
    folder = Path(folder)
    model = AutoModelForImageTextToText.from_pretrained(base_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets or list(SUFFIXES), **lora)  # type: ignore[arg-type]
        adapted = get_peft_model(model, options)
        with torch.no_grad():
            for name, parameter in sorted(adapted.named_parameters()):
                if ".lora_B." in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape))
    with replaced_folder(folder) as temporary:
        adapted.save_pretrained(str(temporary))
        _rename(temporary / "adapter_model.safetensors", LAYOUTS[layout])
    return folder


def _rename(path: Path, prefixes: dict[str, str]) -> None:
    """Rewrite the adapter in `path` with its module prefixes replaced."""
    renamed = {}
    for name, tensor in load_file(path).items():
        module = name.removeprefix("base_model.model.")
        for current, former in prefixes.items():
            if module.startswith(current):
                module = former + module.removeprefix(current)
                break
        renamed[f"base_model.model.{module}"] = tensor
    with replaced_path(path) as temporary:
        save_file(renamed, temporary, metadata={"format": "pt"})
