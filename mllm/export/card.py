"""Model cards: the README.md of an exported folder, rendered from the facts about the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm.config.defaults import make_model_args
from mllm.export.facts import AdapterFacts, Facts, Split
from mllm.export.settings import encoding_settings
from mllm.export.terms import is_tiny, terms_of_base, terms_text
from mllm.family import FAMILIES

RESEARCH_ONLY = "For research only; not for clinical use."
"""Sentence in every card; `push` requires it."""
TERMS_HEADING = "## Terms"
"""Heading of a section in every card; `push` requires it."""
TINY = " This base is a tiny random model. It exists to test the code; results with it say nothing about quality."

TITLES = {"adapter": "LoRA adapter", "merged": "Merged model", "gguf": "GGUF files"}
"""Kind of an exported folder -> title of its card."""
_LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
_SOFTWARE = ("mllm-medical", "torch", "transformers", "peft")
"""Packages whose versions are in the card; `facts.json` contains those of all packages."""


def card_text(kind: str, facts: Facts) -> str:
    """Return the README.md of an exported folder.

    `kind` is a key of `TITLES`. Sections without facts are left out.
    """
    settings = {
        key: value for key, value in encoding_settings(facts.settings).items() if value not in (None, False, {})
    }
    family = FAMILIES.find(settings["type"])
    title = "Vision model" if kind == "merged" and settings.get("part") else TITLES[kind]
    sections = [
        _front_matter(kind, settings, facts.base),
        f"# {title} for {Path(facts.base).name}",
        f"**{RESEARCH_ONLY}** The model can be wrong about any {'image' if family.reads_images else 'question'}. "
        "It has not been evaluated for any clinical purpose.",
        f"Base model: `{facts.base}`, type `{settings['type']}`." + (TINY if is_tiny(facts.base) else ""),
        "## How to load it\n\n" + _usage(kind, settings),
        family.image_note(settings, kind),
        _trained_note(kind, settings),
        _section("Data", _data_lines(facts.data)),
        _section("Settings", _table(("key", "value"), {**settings, **facts.training})),
        _section("Results", _table(("figure", "value"), facts.named_figures())),
        _section("Privacy", privacy_lines(facts.privacy)),
        *(_adapter_section(number, adapter) for number, adapter in enumerate(facts.adapters, start=1)),
        _section("Software", _software(facts.versions)),
        f"{TERMS_HEADING}\n\n{terms_text(facts)}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def privacy_lines(record: Mapping[str, Any] | None) -> list[str]:
    """Return the Markdown lines of a privacy record (`privacy.json`); none for a run without one."""
    if record is None:
        return []
    rows = {key: value for key, value in record.items() if isinstance(value, (str, int, float)) and key != "guarantee"}
    lines = [f"**{record['guarantee']}**", "", "| key | value |", "|---|---|"]
    lines += [f"| {key} | {f'{value:.6g}' if isinstance(value, float) else value} |" for key, value in rows.items()]
    lines += ["", "Not covered by the guarantee:", ""]
    lines += [f"* {sentence}" for sentence in record["outside_the_guarantee"]]
    if record["warnings"]:
        lines += ["", "Warnings:", "", *(f"* {sentence}" for sentence in record["warnings"])]
    return lines


def _data_lines(splits: Mapping[str, Split]) -> list[str]:
    """Return one line for each split."""
    return [f"* {name}: `{split.type}`, {split.samples:,} samples{_skipped(split)}" for name, split in splits.items()]


def _skipped(split: Split) -> str:
    """Return the number of unusable rows of a split for its line in the card; empty if there are none."""
    return f", of which {split.skipped:,} could not be read and were skipped" if split.skipped else ""


def _adapter_section(number: int, adapter: AdapterFacts) -> str:
    """Return the section about one adapter of a combination: its data and its privacy."""
    lines = _data_lines(adapter.data) or ["The data of this adapter is unknown."]
    privacy = privacy_lines(adapter.privacy) or ["No privacy guarantee is known for this adapter."]
    return _section(f"Adapter {number}", [*lines, "", *privacy])


def _front_matter(kind: str, settings: Mapping[str, Any], base: str) -> str:
    """Return the YAML header that the Hugging Face Hub reads; it accepts only names on the Hub as `base_model`."""
    task = FAMILIES.find(settings["type"], settings.get("part")).hub_task
    lines = [f"library_name: {_LIBRARIES[kind]}", f"pipeline_tag: {task}"]
    if base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists():
        lines.append(f"base_model: {base}")
    lines.append("license: other")
    if (terms := terms_of_base(settings["type"], base)) is not None:
        lines += [f"license_name: {terms.name}", f"license_link: {terms.link}"]
    lines.append("tags: [medical, research-only]")
    return "---\n" + "\n".join(lines) + "\n---"


def _usage(kind: str, settings: Mapping[str, Any]) -> str:
    """Return the command that runs the model, and its explanation."""
    if kind == "gguf":
        return (
            "```\nollama create NAME -f Modelfile\nollama run NAME\n```\n\n"
            "The `Modelfile` contains the prompt of the model's chat template. llama.cpp reads the GGUF files without "
            "it."
        )
    command = f"python mllm/pipeline/predict.py {'--adapter' if kind == 'adapter' else '--model'} THIS_FOLDER"
    if settings.get("part"):
        return (
            f"```\n{command} --video a.avi --frames ED=46,ES=61\n```\n\n"
            "The folder contains the vision part of the model and a head that computes measures. Only mllm loads the "
            "head. `mllm.json` lists the measures and the views."
        )
    if not FAMILIES.find(settings["type"]).reads_images:
        return (
            f'```\n{command} --question "What is to be done?"\n```\n\n'
            "`mllm.json` contains the settings with which questions were encoded in training; `predict.py` uses them."
        )
    return (
        f'```\n{command} --image a.dcm --question "What is shown?"\n```\n\n'
        "`mllm.json` contains the settings with which questions and images were encoded in training; `predict.py` "
        "uses them."
    )


def _trained_note(kind: str, settings: Mapping[str, Any]) -> str:
    """Return a note for other programs if more than a LoRA was trained."""
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
    parts = " and ".join(trained)
    if kind == "merged":
        return (
            f"## Other trained parts\n\nTrained in addition to the LoRA: {parts}. `heads.safetensors` contains the "
            "heads, which only mllm loads."
        )
    return (
        f"## Other trained parts\n\n`heads.safetensors` contains {parts}. PEFT loads the LoRA without it: load this "
        "folder with mllm, or merge it."
    )


def _software(versions: Mapping[str, Any]) -> list[str]:
    """Return the versions of the most important packages as one line."""
    packages = versions.get("packages", {})
    parts = [f"{name} {packages[name]}" for name in _SOFTWARE if packages.get(name)]
    if parts and versions.get("git_commit"):
        parts[0] += f" (commit {versions['git_commit'][:12]})"
    return ["Trained with " + ", ".join(parts) + "."] if parts else []


def _section(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines) if lines else ""


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> list[str]:
    """Return a Markdown table without the rows whose value is None; floats have four significant digits."""
    known = {key: value for key, value in rows.items() if value is not None}
    if not known:
        return []
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    for key, value in known.items():
        text = f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split()).replace("|", "\\|")
        lines.append(f"| {key} | {text} |")
    return lines
