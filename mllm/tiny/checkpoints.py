"""Tiny random checkpoints with real processors, below 8 MB, in the files that `from_pretrained` reads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from mllm.errors import ConfigError, hint
from mllm.family import FAMILIES


def ensure_tiny(name: str, parent: str | Path) -> Path:
    """Return the folder `tiny-<name>` in `parent`, and write it if it does not exist."""
    return write_tiny(name, Path(parent) / f"tiny-{name}")


def write_tiny(
    name: str,
    folder: str | Path,
    *,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
) -> Path:
    """Write the tiny checkpoint `name` of a family with its processor into `folder`, and return the folder.

    `text` and `vision` change values of the two configs. Equal arguments write equal bytes. A folder with a checkpoint
    is not changed. The folder is written under a temporary name, so several processes may call this at the same time.
    """
    folder = Path(folder)
    makers = {key: make for family in FAMILIES for key, make in family.tiny.items()}
    if name not in makers:
        raise ConfigError(f"unknown tiny checkpoint '{name}'{hint(name, makers)}")
    if (folder / "config.json").is_file():
        return folder
    from transformers import GenerationConfig, ProcessorMixin  # takes seconds; a checkpoint that exists needs none

    model, processor = makers[name](seed, text or {}, vision or {})
    if model.can_generate():
        tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
        ends = model.config.get_text_config(decoder=True).eos_token_id  # older configs have no other one
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=model.config.to_dict().get("eos_token_id", ends),
            pad_token_id=tokenizer.pad_token_id,
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    try:
        os.replace(partial, folder)
    except OSError:
        shutil.rmtree(partial)
        if not (folder / "config.json").is_file():
            raise
    return folder
