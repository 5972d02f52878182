"""General metadata of a GGUF file: name, base model, license, chat template, sampling settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import yaml

from mllm.export.card import RESEARCH_ONLY
from mllm.export.folder import base_of
from mllm.export.terms import is_tiny
from mllm.family import FAMILIES
from mllm.run_files import CARD


@dataclass(frozen=True)
class Origin:
    """Origin of a model, from the files in its folder."""

    name: str
    base: str | None = None
    """The base model: a name on the Hugging Face Hub or a folder."""
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    tags: list[str] = field(default_factory=list)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None

    def describe(self, writer: gguf.GGUFWriter, kind: str) -> None:
        """Add the origin to the metadata; `kind` is 'model', 'mmproj' or 'adapter'."""
        writer.add_type(kind)
        writer.add_name(self.name)
        writer.add_description(RESEARCH_ONLY)
        if self.license:
            writer.add_license(self.license)
        if self.license_name:
            writer.add_license_name(self.license_name)
        if self.license_link:
            writer.add_license_link(self.license_link)
        if self.base:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, Path(self.base).name)
            if is_on_hub(self.base):
                writer.add_base_model_organization(0, self.base.split("/")[0])
                writer.add_base_model_repo_url(0, f"https://huggingface.co/{self.base}")
        if self.tags:
            writer.add_tags(self.tags)

    def describe_use(self, writer: gguf.GGUFWriter) -> None:
        """Add the chat template and the sampling settings to the metadata."""
        if self.chat_template:
            writer.add_chat_template(self.chat_template)
        adders = {
            "temperature": writer.add_sampling_temp,
            "top_k": writer.add_sampling_top_k,
            "top_p": writer.add_sampling_top_p,
            "min_p": writer.add_sampling_min_p,
            "repetition_penalty": writer.add_sampling_penalty_repeat,
        }
        for key, add in adders.items():
            if self.sampling.get(key) is not None:
                add(self.sampling[key])


def is_on_hub(base: str) -> bool:
    """Return True for a name on the Hugging Face Hub, False for a folder."""
    is_folder = Path(base).exists() or base.startswith((".", "ckpt/"))
    return re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not is_folder


def read_origin(folder: Path, model_type: str, name: str | None = None, base: str | None = None) -> Origin:
    """Return the origin of the model or adapter in `folder`.

    Sources are the facts and the report of an export and the YAML header of a model card. `name` replaces the name of
    the folder, `base` the base model in the files.
    """
    card = _front_matter(folder / CARD)
    base = base or base_of(folder) or _text(card.get("base_model"))
    license, license_name, license_link = (_text(card.get(key)) for key in ("license", "license_name", "license_link"))
    is_known = license not in (None, "other") or license_name is not None
    if not is_known and model_type.startswith("gemma") and not is_tiny(base or str(folder)):
        terms = FAMILIES.look_up("terms", f"{folder.name} {base} {model_type}")
        license, license_name, license_link = terms.license, terms.name, terms.link
    sampling = _json(folder / "generation_config.json")
    return Origin(
        name=name or folder.name,
        base=base,
        license=license,
        license_name=license_name,
        license_link=license_link,
        tags=[str(tag) for tag in card.get("tags") or []],
        sampling=sampling if sampling.get("do_sample") else {},
        chat_template=read_chat_template(folder),
    )


def read_chat_template(folder: Path) -> str | None:
    """Return the chat template in `folder`, from any of the files in which transformers has stored it."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = _json(folder / name).get("chat_template")
        if isinstance(template, list):
            template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
        if template:
            return str(template)
    return None


def _front_matter(path: Path) -> dict[str, Any]:
    """Return the YAML header of a model card; empty without a readable header."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, flags=re.DOTALL)
    try:
        values = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _text(value: Any) -> str | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) and value else None


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
