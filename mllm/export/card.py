"""The model card: what was trained from what, with which figures, under which terms. No number but measured ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm.config.defaults import make_model_args
from mllm.export.settings import KEYS, keys_of
from mllm.family import FAMILIES, Terms

RESEARCH_ONLY = "For research only; not for clinical use."
TINY = " This base is a tiny random model: what is made from it shows that code runs, not that a model is any good."

TITLES = {"adapter": "LoRA adapter", "merged": "Merged model", "gguf": "GGUF files"}
"""Kind of an exported folder -> the title of its card."""
_LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
_DATA, _SETTINGS, _FIGURES, _TERMS_TITLE = "Data", "Settings", "Figures of this run", "Terms"


@dataclass(frozen=True)
class Facts:
    """What a run knows about itself, for its card."""

    base: str
    """The base model as the config names it: a name on the Hugging Face Hub or a folder."""
    data: Sequence[str] = ()
    """One line for each dataset."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """The settings that shaped the result, under the names that they have in a config."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What was measured in this run."""
    privacy: Sequence[str] = ()
    """What the run promises of its training data, as Markdown lines."""


def card_text(kind: str, settings: Mapping[str, Any], facts: Facts) -> str:
    """The README.md of an exported folder; `kind` is one of `TITLES`, `settings` has the keys of `mllm.json`."""
    settings = {key: settings[key] for key in keys_of(settings["type"]) if settings.get(key) not in (None, False, {})}
    terms = _terms(settings["type"], facts.base)
    family = FAMILIES.find(settings["type"])
    sections = [
        _front_matter(kind, family.part(settings.get("part")).hub_task, facts.base, terms),
        f"# {TITLES[kind]} for {Path(facts.base).name}",
        f"**{RESEARCH_ONLY}** It can be wrong about any {'image' if family.reads_images else 'question'}, and has not "
        "been assessed for any clinical purpose.",
        f"Base model: `{facts.base}`, type `{settings['type']}`." + (TINY if _is_tiny(facts.base) else ""),
        "## How to load it\n\n" + _usage(kind, settings),
        family.image_note(settings, kind),
        _beside_note(kind, settings),
        _section(_DATA, [f"* {line}" for line in facts.data]),
        _section(_SETTINGS, _table(("key", "value"), {**settings, **facts.training})),
        _section(_FIGURES, _table(("figure", "value"), facts.figures)),
        _section("Privacy", facts.privacy),
        _section(_TERMS_TITLE, [_terms_text(terms)]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def card_section(card: str, title: str) -> str:
    """The text under a heading of a card; empty where it has none."""
    found = re.search(rf"^## {re.escape(title)}\n\n(.*?)(?=\n\n## |\Z)", card, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def terms_of(card: str) -> str:
    """The terms under which a folder's card gives it."""
    return card_section(card, _TERMS_TITLE)


def facts_of(card: str, base: str) -> Facts:
    """What a card of ours says of the run behind it, for the card of what is made from its folder."""
    data = [line.removeprefix("* ") for line in card_section(card, _DATA).splitlines() if line.startswith("* ")]
    tables: list[dict[str, Any]] = []
    for title in (_SETTINGS, _FIGURES):
        rows = [re.fullmatch(r"\| (.+?) \| (.*) \|", line) for line in card_section(card, title).splitlines()[2:]]
        tables.append({row[1]: row[2].replace("\\|", "|") for row in rows if row})
    known = {*KEYS, *(key for family in FAMILIES for key in family.own_keys)}
    training = {key: value for key, value in tables[0].items() if key not in known}
    return Facts(base=base, data=data, training=training, figures=tables[1])


def _is_tiny(base: str) -> bool:
    """Whether the base is a random model of ours, whose weights nobody has terms for."""
    return Path(base).name.startswith("tiny-")


def _terms(type: str, base: str) -> Terms | None:
    """Return the terms of the base model, or None where they are unknown."""
    if _is_tiny(base):
        return None
    named: Terms | None = FAMILIES.named("terms", Path(base).name)
    return named or next(reversed([*FAMILIES.find(type).terms.values()]), None)


def _front_matter(kind: str, task: str, base: str, terms: Terms | None) -> str:
    """The YAML header that the Hugging Face Hub reads; it accepts only its own names as `base_model`."""
    lines = [f"library_name: {_LIBRARIES[kind]}", f"pipeline_tag: {task}"]
    if base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists():
        lines.append(f"base_model: {base}")
    lines.append("license: other")
    if terms:
        lines += [f"license_name: {terms.name}", f"license_link: {terms.link}"]
    lines.append("tags: [medical, research-only]")
    return "---\n" + "\n".join(lines) + "\n---"


def _usage(kind: str, settings: Mapping[str, Any]) -> str:
    if kind == "gguf":
        return (
            "```\nollama create NAME -f Modelfile\nollama run NAME\n```\n\n"
            "The `Modelfile` has the prompt of the model's own chat template; llama.cpp reads the GGUF files alone."
        )
    option = "--adapter" if kind == "adapter" else "--model"
    if settings.get("part"):
        return (
            f"```\npython mllm/pipeline/predict.py {option} THIS_FOLDER --video a.avi --frames ED=46,ES=61\n```\n\n"
            "The vision part alone, with a head for measures, which mllm alone reads. `mllm.json` names the measures "
            "and the views."
        )
    reads_images = FAMILIES.find(settings["type"]).reads_images
    asked = '--image a.dcm --question "What is shown?"' if reads_images else '--question "What is to be done?"'
    return (
        f"```\npython mllm/pipeline/predict.py {option} THIS_FOLDER {asked}\n```\n\n"
        f"`mllm.json` says how questions{' and images' if reads_images else ''} were encoded in training; `predict.py` "
        "does the same."
    )


def _beside_note(kind: str, settings: Mapping[str, Any]) -> str:
    """What another program must know where more than a LoRA was trained."""
    trained = ["heads"] if settings.get("heads") else []
    args = make_model_args(**{"model_name_or_path": "", **settings})
    if FAMILIES.find(args.type).trains_projector(args):
        trained.append("the projector between vision and language")
    if not trained and not settings.get("box_format"):
        return ""
    if settings.get("part"):
        trained += ["the whole vision tower"] if settings.get("train_vision") else []
    elif settings.get("heads") or not trained:
        trained.append("added tokens")
    what = " and ".join(trained)
    if kind == "merged":
        return (
            f"## Beside the weights\n\nTrained with {what}; `heads.safetensors` holds the heads; mllm alone reads them."
        )
    return (
        f"## Beside the LoRA\n\n`heads.safetensors` holds {what}. PEFT alone loads the LoRA without it: load this "
        "folder with mllm, or merge it."
    )


def _section(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines) if lines else ""


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> list[str]:
    """A Markdown table of what is known; a value that is None is left out, floats have four digits."""
    known = {key: value for key, value in rows.items() if value is not None}
    if not known:
        return []
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    for key, value in known.items():
        shown = f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split()).replace("|", "\\|")
        lines.append(f"| {key} | {shown} |")
    return lines


def _terms_text(terms: Terms | None) -> str:
    sentence = (
        f"{terms.sentence} See {terms.link}." if terms else "The licence of the base model holds for this one too."
    )
    return (
        f"{sentence} The licences of the training data hold beside it. Weights can remember what they were trained on: "
        "keep this folder as confidential as the data."
    )
