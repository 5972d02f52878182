"""The exporter 'merged': the adapter merged into full-precision weights, compared with the unmerged model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from mllm.errors import ConfigError
from mllm.export.comparison import adapter_effect, compare_logits, dtype_name, probe_logits, round_weights
from mllm.export.export_report import shard_sizes
from mllm.export.facts import Facts
from mllm.export.folder import write_companions, write_model
from mllm.export.shards import main_dtype, write_shards
from mllm.export.tensor_names import check_names
from mllm.family import FAMILIES
from mllm.files import replaced_folder, write_json
from mllm.memory import peak_memory
from mllm.models.adapters.merge import merged_weights
from mllm.models.adapters.trained_file import IN_MERGED, write_trained
from mllm.models.backbone.weight_files import weight_files
from mllm.models.language_model import LanguageModel
from mllm.protocols import Bundle, Model
from mllm.registry import EXPORTERS
from mllm.run_files import MERGED, REPORT

logger = logging.getLogger(__name__)

SKIPPED = "skipped by --skip-parity: the logits of the merged model were not compared with the adapter's"
LARGE = 0.5
"""A difference of logits above this fraction of the effect of the adapter causes a warning."""


@EXPORTERS.register_module(name="merged")
def write(
    bundle: Bundle,
    folder: str | Path,
    *,
    facts: Facts,
    dtype: torch.dtype | None = None,
    details: Mapping[str, Any] | None = None,
    compare: bool = True,
) -> Path:
    """Merge the adapter of `bundle` in memory and write the model with processor, settings, facts and model card.

    The model of `bundle` is the merged one afterwards. `dtype` is the dtype of the written weights; None keeps theirs.
    `details` are added to the report. Raises `ConfigError` for a quantized base, for a model without adapter, and if
    the logits of the written weights differ from the adapter's; `compare=False` omits this comparison.
    """
    folder, started = Path(folder), time.monotonic()
    report = merge_in_place(bundle, dtype, compare=compare)
    report |= {"dtype": dtype_name(dtype or bundle.model.pretrained.dtype), "method": "in memory", **(details or {})}
    with replaced_folder(folder) as temporary:
        write_model(bundle.model, temporary, dtype)
        _write_companions(bundle, temporary, facts, report, started)
    _log_result(folder, report)
    return folder


def write_streamed(
    bundle: Bundle,
    folder: str | Path,
    *,
    base: Path,
    facts: Facts,
    reload: Callable[[Path], Bundle],
    details: Mapping[str, Any] | None = None,
    compare: bool = True,
) -> Path:
    """Merge a `bundle` whose large weights stay in the files of `base`; see `write`.

    The weights keep their dtypes. Peak memory is little more than the largest weight. The comparison reads the written
    files, with the bundle that `reload` makes of them; both models are computed layer by layer.
    """
    folder, started = Path(folder), time.monotonic()
    refuse_nothing_to_merge(bundle.model)
    model = bundle.model.pretrained
    unmerged = probe_logits(bundle) if compare else None
    effect = None if unmerged is None else adapter_effect(bundle, unmerged)
    report: dict[str, Any] = {"adapter_effect": effect, "tied_embeddings": _has_tied_embeddings(bundle.model)}
    with replaced_folder(folder) as temporary:
        names = write_shards(model, base, temporary)
        stored = main_dtype(temporary, names)
        model.config.architectures = [type(model).__name__]
        model.config.dtype = stored
        model.config.save_pretrained(temporary)
        if model.can_generate():
            model.generation_config.save_pretrained(temporary)
        write_trained(bundle.model, temporary, IN_MERGED)
        report |= {"dtype": dtype_name(stored), "method": "shard by shard", **(details or {})}
        _write_companions(bundle, temporary, facts, report, started)
        if unmerged is None:
            report["parity"] = SKIPPED
        else:
            report |= compare_logits(unmerged, probe_logits(reload(temporary)), computed=model.dtype, stored=stored)
        report |= {"seconds": round(time.monotonic() - started, 2), "peak_memory_bytes": peak_memory()}
        write_json(temporary / REPORT, report)
    _log_result(folder, report)
    return folder


def _write_companions(bundle: Bundle, folder: Path, facts: Facts, report: dict[str, Any], started: float) -> None:
    """Complete the report and write all files other than the weights."""
    report["base"] = facts.base
    report["tensors"] = check_names(folder)
    report["shards"] = shard_sizes(weight_files(folder))
    report |= {"seconds": round(time.monotonic() - started, 2), "peak_memory_bytes": peak_memory()}
    # The written weights contain those of all checkpoints of a composed model.
    settings = {**facts.settings, **FAMILIES.find(facts.settings["type"]).complete}
    write_companions(folder, MERGED, replace(facts, settings=settings), bundle.encoder.processor, report)


def merge_in_place(bundle: Bundle, dtype: torch.dtype | None = None, compare: bool = True) -> dict[str, Any]:
    """Merge the adapter into the weights of `bundle.model`, round them to `dtype` and return the comparison.

    Compares the logits of one prompt with one generated image before and after, computed in the dtype of the weights.
    """
    language_model = bundle.model
    assert isinstance(language_model, LanguageModel), "this exporter is for models that generate text"
    refuse_nothing_to_merge(language_model)
    unmerged = probe_logits(bundle) if compare else None
    effect = None if unmerged is None else adapter_effect(bundle, unmerged)
    backbone: Any = language_model.backbone
    language_model.backbone = merged_weights(backbone)
    model = language_model.pretrained
    if language_model.rows is not None:
        language_model.rows.fold(model)
    round_weights(model, dtype)
    report: dict[str, Any] = {"adapter_effect": effect, "tied_embeddings": _has_tied_embeddings(language_model)}
    if unmerged is None:
        return report | {"parity": SKIPPED}
    return report | compare_logits(unmerged, probe_logits(bundle), computed=model.dtype, stored=dtype or model.dtype)


def refuse_nothing_to_merge(model: Model) -> None:
    """Raise `ConfigError` for a model without trained parts."""
    if not isinstance(model.backbone, PeftModel) and not model.trained_state():
        raise ConfigError("the model has no adapter to merge: pass an adapter, or use the model as it is")


def _has_tied_embeddings(model: Model) -> bool:
    pretrained = model.pretrained
    return bool(pretrained.get_output_embeddings().weight is pretrained.get_input_embeddings().weight)


def _log_result(folder: Path, report: Mapping[str, Any]) -> None:
    if report["parity"] != "checked":
        logger.warning("merged model written to %s; the comparison of logits was skipped", folder)
        return
    difference, effect = report["max_abs_difference"], report["adapter_effect"]
    logger.info("merged model written to %s (largest difference of logits %.2g)", folder, difference)
    if effect is not None and difference > LARGE * effect:
        logger.warning(
            "the adapter changes the logits by %.2g, and rounding the merged weights to %s changes them by %.2g: a "
            "large part of the training is lost; use the adapter unmerged, or a base in fp32",
            effect,
            report["dtype"],
            difference,
        )
