"""What of an exported folder goes to the Hugging Face Hub: files known by name, never data, no path of a machine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from mllm.errors import ConfigError
from mllm.export.card import RESEARCH_ONLY, terms_of
from mllm.export.settings import BASE
from mllm.export.settings import FILE as SETTINGS
from mllm.models.backbone.streamed import Unstreamable, weight_files

CARD = "README.md"
_WORDS = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
)
"""Files of a processor."""
KINDS = {
    "adapter": ("adapter_config.json", "adapter_model.safetensors", "heads.safetensors", SETTINGS, *_WORDS),
    "merged": (
        *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
        *("model.safetensors.index.json", "heads.safetensors", SETTINGS, *_WORDS),
    ),
    "gguf": ("*.gguf", "Modelfile"),
}
"""What each kind of folder is made of, beside its card; everything else stays here."""


@dataclass(frozen=True)
class Parcel:
    """What would be sent."""

    kind: str
    """One of `KINDS`."""
    files: dict[str, Path | bytes]
    """Name in the repository -> the file, or the text that is sent in its place."""
    kept: Sequence[str]
    """Files of the folder that are not sent."""

    def size(self, name: str) -> int:
        """Bytes of one file."""
        source = self.files[name]
        return len(source) if isinstance(source, bytes) else source.stat().st_size


def pack(folder: Path, base: str | None = None) -> Parcel:
    """What of `folder` goes to the Hub, its base called `base` where it is given.

    Raises `ConfigError` for a folder that is no export, lacks weights or a card, or names a base of this machine alone.
    """
    kind = _kind(folder)
    card = folder / CARD
    if not card.is_file():
        raise ConfigError(f"{folder} has no {CARD}: nothing leaves without a model card; export it again")
    text = card.read_text(encoding="utf-8")
    if RESEARCH_ONLY not in text or not terms_of(text):
        raise ConfigError(
            f"{card} is no complete card: it must hold the sentence '{RESEARCH_ONLY}' and a section '## Terms'; export "
            "the folder again, or add them"
        )
    if kind == "merged":
        _refuse_incomplete(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    sent = [name for name in names if name == CARD or any(fnmatch(name, pattern) for pattern in KINDS[kind])]
    files: dict[str, Path | bytes] = {name: folder / name for name in sent}
    kept = sorted({str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - set(sent))
    _name_base(folder, files, base)
    _refuse_home(folder, files)
    return Parcel(kind, files, kept)


def _kind(folder: Path) -> str:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; name an adapter/ or merged/ folder, or one of GGUF files")
    if (folder / "adapter_config.json").is_file() or (folder / "heads.safetensors").is_file():
        return "merged" if (folder / "config.json").is_file() else "adapter"
    if (folder / "config.json").is_file():
        return "merged"
    if any(folder.glob("*.gguf")):
        return "gguf"
    inner = [name for name in ("adapter", "merged") if (folder / name).is_dir()]
    remedy = f": it is a run's folder, with data in it; name {folder / inner[0]}" if inner else ""
    raise ConfigError(f"{folder} holds no adapter, no model and no GGUF file{remedy}")


def _refuse_incomplete(folder: Path) -> None:
    try:
        missing = [file.name for file in weight_files(folder) if not file.is_file()]
    except Unstreamable as reason:
        raise ConfigError(f"{folder} is not complete: {reason}; merge it again") from None
    if missing:
        raise ConfigError(f"{folder} lacks {missing[0]}; merge it again")


def _name_base(folder: Path, files: dict[str, Path | bytes], base: str | None) -> None:
    """Puts `base` in the place of the base's name, in every file that tells it."""
    local = None
    for file, key in (("adapter_config.json", "base_model_name_or_path"), (SETTINGS, BASE)):
        if file not in files:
            continue
        values = json.loads((folder / file).read_text(encoding="utf-8"))
        told = values.get(key)
        if told is None:
            continue
        if base is not None and told != base:
            files[file] = (json.dumps({**values, key: base}, indent=2) + "\n").encode()
        if not is_hub_name(base or told):
            local = told
    card = (folder / CARD).read_text(encoding="utf-8")
    told = re.search(r"^Base model: `(.+?)`", card, re.MULTILINE)
    if told and not is_hub_name(base or told[1]):
        local = told[1]
    if local is not None:
        raise ConfigError(
            f"{folder} names '{local}' as its base, a folder that nobody else has: give the base's name on the Hub "
            "with --base ORG/NAME"
        )
    if told and base is not None and told[1] != base:
        said = card.replace(told[1], base)
        if f"base_model: {base}" not in said:
            said = said.replace("---\n", f"---\nbase_model: {base}\n", 1)
        files[CARD] = said.encode()


def _refuse_home(folder: Path, files: dict[str, Path | bytes]) -> None:
    """Refuses what tells the names of folders, and with them the user's."""
    home = str(Path.home())
    for name in (CARD, SETTINGS, "adapter_config.json", "config.json", "Modelfile"):
        source = files.get(name, b"")
        text = source.decode() if isinstance(source, bytes) else source.read_text(encoding="utf-8")
        if len(home) > 1 and f"{home}/" in text:
            raise ConfigError(
                f"{folder / name} names folders in {home}, which is nobody's business: take them out of it"
            )


def is_hub_name(name: str) -> bool:
    """Whether a name is one on the Hub: `ORG/NAME`, and no folder here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)) and not Path(name).exists()
