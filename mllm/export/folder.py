"""Files in every exported folder in addition to the weights: processor, settings, facts, card, report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mllm.errors import ConfigError
from mllm.export.card import card_text
from mllm.export.facts import Facts, read_facts, write_facts
from mllm.export.settings import WHOLE, encoding_settings, read_base, write_settings
from mllm.export.tensor_names import compare_weights
from mllm.files import write_json, write_text
from mllm.models.adapters.trained_file import IN_MERGED, write_trained
from mllm.protocols import Model
from mllm.run_files import ADAPTER, ADAPTER_CONFIG, CARD, MERGED, MODEL_CONFIG, REPORT, TRAINED


def write_model(model: Model, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a merged model in `dtype` (None: its own), and other trained tensors in their own dtype.

    The weights of `model` have this dtype afterwards. Raises `ConfigError` if the files, read back, differ from them.
    """
    if dtype is not None:
        torch.nn.Module.to(model.pretrained, dtype)
    model.pretrained.save_pretrained(folder)
    compare_weights(model.pretrained, folder)
    write_trained(model, folder, IN_MERGED)


def write_companions(
    folder: Path, kind: str, facts: Facts, processor: Any, report: Mapping[str, Any] | None = None
) -> None:
    """Write all files other than the weights.

    `kind` is 'adapter' or 'merged', `processor` a processor of transformers, and `report` the content of
    `export_report.json` (None: no such file).
    """
    settings = encoding_settings(facts.settings) | (WHOLE if kind == MERGED else {})
    facts = replace(facts, settings=settings)
    processor.save_pretrained(folder)
    # A merged model has no separate base.
    write_settings(folder, facts.settings, facts.base if kind == ADAPTER else None)
    write_facts(folder, facts)
    write_text(folder / CARD, card_text(kind, facts))
    if report is not None:
        write_json(folder / REPORT, report)


def update_figures(folder: Path, figures: Mapping[str, Mapping[str, float | None]]) -> None:
    """Replace the figures in `facts.json` and the card of an exported folder.

    `figures` has the form of `Facts.figures`. Raises `ConfigError` for a folder without `facts.json`.
    """
    facts, kind = read_facts(folder), kind_of(folder)
    if facts is None or kind is None:
        raise ConfigError(f"{folder} is not a folder that was exported by this version of mllm: export the run again")
    facts = replace(facts, figures=figures)
    write_facts(folder, facts)
    write_text(folder / CARD, card_text(kind, facts))


def base_of(folder: Path) -> str | None:
    """Return the base model that the files of an exported folder name; None if there is none."""
    facts = read_facts(folder)
    if facts is not None:
        return facts.base
    if (base := read_base(folder)) is not None:
        return base
    path = folder / REPORT
    base = json.loads(path.read_text(encoding="utf-8")).get("base") if path.is_file() else None
    return None if base is None else str(base)


def kind_of(folder: Path) -> str | None:
    """Return the kind of an exported folder: 'adapter', 'merged' or 'gguf'; None for other folders."""
    if (folder / MODEL_CONFIG).is_file():
        return MERGED
    if (folder / ADAPTER_CONFIG).is_file() or (folder / TRAINED).is_file():
        return ADAPTER
    return "gguf" if any(folder.glob("*.gguf")) else None
