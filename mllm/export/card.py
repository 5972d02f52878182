"""Model cards: the README.md of an exported folder, rendered from the facts about the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm.config.defaults import make_model_args
from mllm.config.trainable import LORA, Parts, trained_parts
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
    trained = _trained_parts(facts)
    sections = [
        _front_matter(kind, settings, facts),
        f"# {_title(kind, settings, trained)} for {Path(facts.base).name}",
        f"**{RESEARCH_ONLY}** The model can be wrong about any {'image' if family.reads_images else 'question'}. "
        "It has not been evaluated for any clinical purpose.",
        _base_note(facts, settings["type"]),
        "## How to load it\n\n" + _usage(kind, settings),
        family.image_note(settings, kind),
        _trained_note(kind, settings, trained),
        _section("Data", _data_lines(facts.data)),
        _section("Settings", _table(("key", "value"), {**settings, **facts.training, **_processes(facts)})),
        _section("Results", _table(("figure", "value"), facts.named_figures())),
        _section("Privacy", privacy_lines(facts.privacy)),
        *(_adapter_section(number, adapter) for number, adapter in enumerate(facts.adapters, start=1)),
        _section("Software", _software(facts.versions)),
        f"{TERMS_HEADING}\n\n{terms_text(facts)}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _trained_parts(facts: Facts) -> Parts:
    """Return the parts that the run trained. Facts of older versions name a LoRA only."""
    values = {**facts.settings, "trainable": facts.training.get("trainable", LORA)}
    return trained_parts(make_model_args(**{"model_name_or_path": "", **encoding_settings(values)}))


def _title(kind: str, settings: Mapping[str, Any], trained: Parts) -> str:
    """Return the title of a card without the name of the base."""
    if kind == "merged" and settings.get("part"):
        return "Vision model"
    return "Trained weights" if kind == "adapter" and not trained.has_lora else TITLES[kind]


def _base_note(facts: Facts, type: str) -> str:
    """Return the sentences about the base model."""
    tiny = TINY if is_tiny(facts.base) else ""
    if not facts.training.get("from_scratch"):
        return f"Base model: `{facts.base}`, type `{type}`." + tiny
    seed = facts.training.get("init_seed", 0)
    return (
        f"Trained from scratch: new random weights (seed {seed}) in the architecture of `{facts.base}`, type `{type}`. "
        "No weights of that model were used." + tiny
    )


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


def _processes(facts: Facts) -> dict[str, str]:
    """Return the number of processes that trained and their engine, if there were several."""
    return {"processes": f"{facts.processes} ({facts.engine})"} if facts.processes > 1 else {}


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


def _front_matter(kind: str, settings: Mapping[str, Any], facts: Facts) -> str:
    """Return the YAML header that the Hugging Face Hub reads; it accepts only names on the Hub as `base_model`."""
    base = facts.base
    task = FAMILIES.find(settings["type"], settings.get("part")).hub_task
    library = _LIBRARIES[kind] if kind != "adapter" or _trained_parts(facts).has_lora else "mllm"
    lines = [f"library_name: {library}", f"pipeline_tag: {task}"]
    is_derived = not facts.training.get("from_scratch")
    if is_derived and base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists():
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


def _trained_note(kind: str, settings: Mapping[str, Any], parts: Parts) -> str:
    """Return a note for other programs if more than a LoRA was trained."""
    trained = ["heads"] if settings.get("heads") else []
    trained += list(map(_tower_title, parts.full, parts.full.values())) if parts.named else ["all weights"]
    if not trained and not settings.get("box_format"):
        return ""
    if not settings.get("part") and (settings.get("heads") or not trained):
        trained.append("added tokens")
    names = " and ".join(trained)
    heading = "## Other trained parts\n\n" if parts.has_lora else "## Trained parts\n\n"
    if kind == "merged":
        beside = "Trained in addition to the LoRA" if parts.has_lora else "Trained"
        heads = " `heads.safetensors` contains the heads, which only mllm loads." if settings.get("heads") else ""
        return f"{heading}{beside}: {names}.{heads}"
    beside = "PEFT loads the LoRA without it: load" if parts.has_lora else "Load"
    return f"{heading}`heads.safetensors` contains {names}. {beside} this folder with mllm, or merge it."


def _tower_title(tower: str, layers: int | None) -> str:
    """Return the name of a tower that trains in full, or of its last layers, in a sentence."""
    title = {"language": "language model", "vision": "vision tower"}.get(tower, "projector between vision and language")
    if layers is not None:
        return f"the last {layers} layers of the {title}"
    return f"the whole {title}" if tower == "vision" else f"the {title}"


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
