"""Files of an exported folder that go to the Hugging Face Hub: an allow-list without data or local paths."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from mllm.errors import ConfigError
from mllm.export.card import RESEARCH_ONLY, TERMS_HEADING
from mllm.export.folder import base_of, kind_of
from mllm.export.settings import BASE
from mllm.files import json_text
from mllm.models.backbone.weight_files import weight_files
from mllm.run_files import (
    ADAPTER,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CARD,
    FACTS,
    MERGED,
    MODEL_CONFIG,
    MODEL_INDEX,
    MODEL_WEIGHTS,
    MODELFILE,
    SETTINGS,
    TRAINED,
)

_PROCESSOR = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
)
"""Files of a processor."""
ALLOWED = {
    ADAPTER: (ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRAINED, SETTINGS, FACTS, CARD, *_PROCESSOR),
    MERGED: (
        *(MODEL_CONFIG, "generation_config.json", MODEL_WEIGHTS, "model-*-of-*.safetensors", MODEL_INDEX),
        *(TRAINED, SETTINGS, FACTS, CARD, *_PROCESSOR),
    ),
    "gguf": ("*.gguf", MODELFILE, FACTS, CARD),
}
"""Kind of a folder -> patterns of the files that are uploaded; all other files stay on this machine."""
_BASE_KEYS = {ADAPTER_CONFIG: "base_model_name_or_path", SETTINGS: BASE, FACTS: "base"}
"""File -> its key that names the base model."""
_TEXTS = (CARD, SETTINGS, FACTS, ADAPTER_CONFIG, MODEL_CONFIG, MODELFILE)
"""The files that are searched for local paths."""


@dataclass(frozen=True)
class Upload:
    """The files of one upload."""

    kind: str
    """A key of `ALLOWED`."""
    files: dict[str, Path | bytes]
    """Name in the repository -> the file, or the text that replaces it."""
    left_out: Sequence[str]
    """Files of the folder that are not uploaded."""

    def size(self, name: str) -> int:
        """Return the size of one file in bytes."""
        source = self.files[name]
        return len(source) if isinstance(source, bytes) else source.stat().st_size


def prepare_upload(folder: Path, base: str | None = None) -> Upload:
    """Return the files of `folder` for the Hub; `base` replaces the name of the base model in all of them.

    Raises `ConfigError` for a folder that is not an export, without weights or a complete card, with a base that is a
    local folder, or with local paths in a file.
    """
    kind = _kind(folder)
    _refuse_incomplete_card(folder / CARD)
    if kind == MERGED:
        _refuse_missing_weights(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    allowed = [name for name in names if any(fnmatch(name, pattern) for pattern in ALLOWED[kind])]
    files: dict[str, Path | bytes] = {name: folder / name for name in allowed}
    left_out = sorted({str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - set(allowed))
    _replace_base(folder, files, base)
    _refuse_home(folder, files)
    return Upload(kind, files, left_out)


def _kind(folder: Path) -> str:
    """Return the kind of `folder`; raises `ConfigError` for a folder that is not an export."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist; pass an adapter/ or merged/ folder, or a folder of GGUF files")
    if (kind := kind_of(folder)) is not None:
        return kind
    inner = [name for name in (ADAPTER, MERGED) if (folder / name).is_dir()]
    fix = f": it is a run folder, which contains data; pass {folder / inner[0]}" if inner else ""
    raise ConfigError(f"{folder} contains no adapter, no model and no GGUF file{fix}")


def _refuse_incomplete_card(path: Path) -> None:
    """Raise `ConfigError` without a model card, or if it lacks the research sentence or the terms."""
    if not path.is_file():
        raise ConfigError(f"{path.parent} has no {CARD}: a model card is required; export the folder again")
    text = path.read_text(encoding="utf-8")
    if RESEARCH_ONLY not in text or not text.partition(f"\n{TERMS_HEADING}\n")[2].strip():
        raise ConfigError(
            f"{path} is incomplete: it must contain the sentence '{RESEARCH_ONLY}' and a section '{TERMS_HEADING}'; "
            "export the folder again, or add them"
        )


def _refuse_missing_weights(folder: Path) -> None:
    """Raise `ConfigError` if a weight file of a whole model is missing."""
    files = weight_files(folder)
    if not files:
        raise ConfigError(f"{folder} is not complete: it has no safetensors files; merge it again")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"{folder} lacks {missing[0]}; merge it again")


def _replace_base(folder: Path, files: dict[str, Path | bytes], base: str | None) -> None:
    """Replace the name of the base model by `base` in all files; raises `ConfigError` if a local name remains."""
    names = []
    for file, key in _BASE_KEYS.items():
        if file not in files:
            continue
        values = json.loads((folder / file).read_text(encoding="utf-8"))
        if values.get(key) is None:
            continue
        names.append(values[key])
        if base is not None and values[key] != base:
            files[file] = json_text({**values, key: base}).encode()
    in_card = base_of(folder)
    names += [in_card] if in_card else []
    local = [name for name in names if not is_hub_name(base or name)]
    if local:
        raise ConfigError(
            f"{folder} names the local folder '{local[0]}' as its base: pass the name of the base on the Hub with "
            "--base ORG/NAME"
        )
    if base is not None and in_card not in (None, base):
        text = (folder / CARD).read_text(encoding="utf-8").replace(str(in_card), base)
        if f"base_model: {base}" not in text:
            text = text.replace("---\n", f"---\nbase_model: {base}\n", 1)
        files[CARD] = text.encode()


def _refuse_home(folder: Path, files: dict[str, Path | bytes]) -> None:
    """Raise `ConfigError` if a file contains a path in the home directory, and with it the name of the user."""
    home = str(Path.home())
    for name in _TEXTS:
        source = files.get(name, b"")
        text = source.decode() if isinstance(source, bytes) else source.read_text(encoding="utf-8")
        if len(home) > 1 and f"{home}/" in text:
            raise ConfigError(f"{folder / name} contains local paths in {home}: remove them from the file")


def is_hub_name(name: str) -> bool:
    """Return True for a name on the Hub, `ORG/NAME`, that is not a local folder."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)) and not Path(name).exists()
