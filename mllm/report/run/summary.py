"""Summary of a run in five lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm.report.figures import formatted
from mllm.report.run.blocks import Block, Pairs, Section, plain
from mllm.report.run.inputs import RunFiles
from mllm.report.run.pictures import Pictures

RESEARCH = "For research only; not for clinical use."
BASELINES = {"majority_class": "majority class", "chance": "chance", "auprc_chance": "chance"}
"""Figures of trivial answers, which the summary names beside the first figure."""


def summary(run: RunFiles, pictures: Pictures) -> Section:
    """Return the section with the summary."""
    lines = [
        ("Model", _model(run)),
        ("Data", _data(run)),
        ("Training", _training(run)) if not run.is_evaluation else ("Evaluation", _evaluation(run)),
        ("Result", _result(run)),
        ("Limits", _limits(run)),
    ]
    blocks: list[Block] = [Pairs(lines)]
    return Section("summary", "Summary", blocks)


def _model(run: RunFiles) -> str:
    if run.is_evaluation:
        server = run.metrics.get("server")
        if isinstance(server, dict):
            return f"{plain(server.get('model'))} on the server {plain(server.get('address'))}"
        model = run.metrics.get("model")
        values = model if isinstance(model, dict) else {}
        adapter = f" with the adapter {values['adapter_path']}" if values.get("adapter_path") else ""
        return f"{plain(values.get('model_name_or_path'))}{adapter}, type {plain(values.get('type'))}"
    if run.facts is None:
        return "unknown, because facts.json is absent or damaged"
    facts = run.facts
    start = "new random weights in the architecture of " if facts.training.get("from_scratch") else ""
    text = f"{start}{facts.base}, type {plain(facts.settings.get('type'))}"
    if not facts.parameters:
        return text
    count, total = (sum(tower[key] for tower in facts.parameters.values()) for key in ("trainable", "all"))
    towers = ", ".join(tower for tower, own in facts.parameters.items() if own["trainable"])
    return f"{text}; {count:,} of {total:,} parameters were trained ({100 * count / max(1, total):.2f} %), in: {towers}"


def _data(run: RunFiles) -> str:
    if run.is_evaluation:
        counts = run.metrics.get("counts") or {}
        skipped = f"; {counts['skipped']:,} rows were skipped" if counts.get("skipped") else ""
        return f"{plain(counts.get('answers'))} samples of the split '{run.split}'{skipped}"
    if run.data:
        return "; ".join(f"{name}: {_counted(counts)}" for name, counts in run.data.items())
    if run.facts is None:
        return "unknown"
    return "; ".join(f"{name}: {split.samples:,} samples" for name, split in run.facts.data.items())


def _counted(counts: Mapping[str, Any]) -> str:
    """Return the numbers of samples and of patients, if they are known."""
    patients = f" of {plain(counts['patients'])} patients" if counts.get("patients") else ""
    return f"{plain(counts.get('samples'))} samples{patients}"


def _training(run: RunFiles) -> str:
    updates = f"{run.facts.updates:,} updates" if run.facts is not None and run.facts.updates is not None else ""
    texts = [updates] if updates else []
    for key, label in (("loss", "training loss"), ("eval_loss", "validation loss")):
        values = [row[key] for row in run.log if isinstance(row.get(key), (int, float))]
        if values:
            change = f"{values[0]:.4f} at first, " if len(values) > 1 else ""
            texts.append(f"{label} {change}{values[-1]:.4f}{' at last' if change else ''}")
    return "; ".join(texts) or "unknown, because training_log.json is absent or damaged"


def _evaluation(run: RunFiles) -> str:
    settings = run.metrics["settings"]
    return f"config {plain(settings.get('config'))}; {plain(run.metrics.get('seconds'))} seconds"


def _result(run: RunFiles) -> str:
    """Return the first figure of the first metrics with its interval, and the figures of trivial answers."""
    texts = []
    for metric, figures in list(run.figures.items())[:3]:
        known = {name: float("nan") if value is None else value for name, value in figures.items()}
        shown = formatted(known)
        first = next(iter(shown), None)
        if first is None:
            continue
        trivial = [f"{label} {shown[name]}" for name, label in BASELINES.items() if name in shown and name != first]
        end = f" ({', '.join(trivial)})" if trivial else ""
        title = first if first == metric else f"{metric}: {first}"
        texts.append(f"{title} {shown[first]}{end}")
    intervals = " (95 % intervals in brackets)" if any("[" in text for text in texts) else ""
    return "; ".join(texts) + intervals or "nothing was evaluated"


def _limits(run: RunFiles) -> str:
    texts = [RESEARCH]
    model = run.metrics.get("model")
    base = str(model.get("model_name_or_path")) if run.is_evaluation and isinstance(model, dict) else ""
    base = base if run.facts is None else run.facts.base
    if base.rpartition("/")[2].startswith("tiny-") or (run.is_evaluation and run.metrics["settings"].get("tiny")):
        texts.append("The base is a tiny random model, so the figures say nothing about quality.")
    if run.is_private and run.facts is not None and run.facts.privacy is not None:
        texts.append(str(run.facts.privacy.get("guarantee", "")))
    if run.warnings or run.skipped:
        texts.append(f"Listed below: warnings ({len(run.warnings):,}), skipped rows ({len(run.skipped):,}).")
    return " ".join(texts)
