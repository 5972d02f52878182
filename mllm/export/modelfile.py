"""Writer of a Modelfile beside exported GGUF files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from mllm.config.checkpoint import inspect_checkpoint
from mllm.errors import ConfigError
from mllm.export.card import card_text
from mllm.export.facts import known_facts, write_facts
from mllm.export.folder import base_of
from mllm.export.ollama import chat_format, modelfile_text
from mllm.export.settings import read_settings
from mllm.export.terms import terms_text
from mllm.family import FAMILIES
from mllm.files import write_text
from mllm.models.backbone.load_errors import explained
from mllm.run_files import CARD, FACTS, MODELFILE, SETTINGS


@dataclass(frozen=True)
class GGUFFiles:
    """Files that a Modelfile names."""

    weights: Path
    """The model; with `adapter` its base."""
    mmproj: Path | None = None
    """The vision tower."""
    adapter: Path | None = None
    """A LoRA."""

    def named(self) -> dict[str, Path]:
        """Return the files by the option of the command line that names them."""
        files = {"gguf": self.weights, "mmproj": self.mmproj, "adapter-gguf": self.adapter}
        return {option: path for option, path in files.items() if path is not None}


def write_modelfile(folder: Path, files: GGUFFiles, out: Path | None, generation: Mapping[str, Any]) -> Path:
    """Write the Modelfile of `files`, which were exported from the model or adapter in `folder`, and return its path.

    `out` is the file to write (None: `Modelfile` beside the weights). `generation` contains the keys of `PARAMETERS`; a
    `max_length` of None is replaced by that of the training. Facts and a model card are written beside the Modelfile if
    there is no card. Raises `ConfigError` if a file is absent or not a GGUF file.
    """
    _refuse_other_files(folder, files)
    with explained(str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = read_settings(folder, type=FAMILIES.for_architecture(inspect_checkpoint(str(folder)).model_type).type)
    facts = known_facts(folder, base_of(folder) or folder.name, settings)
    out = out or files.weights.with_name(MODELFILE)
    relative = {option: Path(os.path.relpath(path, out.parent)).as_posix() for option, path in files.named().items()}
    is_ours = (folder / FACTS).is_file() or (folder / SETTINGS).is_file()
    text = modelfile_text(
        chat_format(tokenizer.chat_template),
        relative["gguf"],
        mmproj=relative.get("mmproj"),
        adapter=relative.get("adapter-gguf"),
        generation={**generation, "max_length": generation["max_length"] or facts.settings.get("max_length")},
        system=facts.settings.get("system"),
        stops=[tokenizer.eos_token],
        license_text=terms_text(facts) if is_ours else None,
    )
    write_text(out, text)
    card = out.with_name(CARD)
    if not card.is_file():
        if not out.with_name(FACTS).is_file():
            write_facts(out.parent, facts)
        write_text(card, card_text("gguf", facts))
    return out


def _refuse_other_files(folder: Path, files: GGUFFiles) -> None:
    """Raise `ConfigError` if a file is absent or not a GGUF file."""
    for option, path in files.named().items():
        if not path.is_file():
            raise ConfigError(f"--{option} {path} does not exist")
        with open(path, "rb") as file:
            if file.read(4) != b"GGUF":
                raise ConfigError(f"--{option} {path} is not a GGUF file: export.py --format gguf writes one")
    if not folder.is_dir():
        raise ConfigError(f"--model {folder} does not exist")
