"""The exporter 'merged': the adapter folded into full-precision weights, checked against the unmerged model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from mllm.errors import ConfigError
from mllm.export.card import Facts, card_text
from mllm.export.export_report import FILE as REPORT
from mllm.export.export_report import peak_memory, shard_sizes
from mllm.export.parity import adapter_effect, compared, named, probe_logits
from mllm.export.settings import write_settings
from mllm.export.shards import main_dtype, write_shards
from mllm.export.tensor_names import check_names
from mllm.family import FAMILIES
from mllm.files import replaced_folder, write_json, write_text
from mllm.models.adapters.attach import merged_weights
from mllm.models.adapters.trained_file import IN_MERGED, write_trained
from mllm.models.backbone.streamed import weight_files
from mllm.models.language_model import LanguageModel
from mllm.registry import EXPORTERS
from mllm.structures import Bundle, Model

logger = logging.getLogger(__name__)

SKIPPED = "skipped because it was asked for: nothing shows that the merged model says what the adapter says"
LOST = 0.5
"""From which share of the adapter's effect on the difference is called large."""


@EXPORTERS.register_module(name="merged")
def write(
    bundle: Bundle,
    folder: str | Path,
    *,
    settings: Mapping[str, Any],
    facts: Facts,
    dtype: torch.dtype | None = None,
    told: Mapping[str, Any] | None = None,
    parity: bool = True,
) -> Path:
    """Folds the bundle's adapter into its base in memory and writes the model, processor, `mllm.json`, card and report.

    The bundle's model is the merged one afterwards. `dtype` is that of the written weights; None keeps the one they
    have. `told` goes into the report. Raises `ConfigError` for a quantized base, a model without adapter, and where the
    merged logits differ; `parity=False` does not compare them.
    """
    folder, started = Path(folder), time.monotonic()
    report = merge_in_place(bundle, parity=parity)
    model = bundle.model.pretrained
    if dtype is not None:
        torch.nn.Module.to(model, dtype)
    report |= {"dtype": named(model.dtype), "method": "in memory", **(told or {})}
    with replaced_folder(folder) as temporary:
        model.save_pretrained(temporary)
        _finish(bundle, temporary, settings, facts, report, started)
    _announce(folder, report)
    return folder


def write_streamed(
    bundle: Bundle,
    folder: str | Path,
    *,
    base: Path,
    settings: Mapping[str, Any],
    facts: Facts,
    reload: Callable[[Path], Bundle],
    told: Mapping[str, Any] | None = None,
    parity: bool = True,
) -> Path:
    """The same for a bundle whose large weights lie in the files of `base`, in little more memory than the largest one.

    The weights keep their dtypes. The comparison reads the written files, through the bundle that `reload` makes of
    them; both models are computed layer by layer, so it needs no more memory than the merge.
    """
    folder, started = Path(folder), time.monotonic()
    refuse_nothing_to_merge(bundle.model)
    model = bundle.model.pretrained
    unmerged = probe_logits(bundle) if parity else None
    effect = None if unmerged is None else adapter_effect(bundle, unmerged)
    report: dict[str, Any] = {"adapter_effect": effect, "tied_embeddings": _tied(bundle.model)}
    with replaced_folder(folder) as temporary:
        names = write_shards(model, base, temporary)
        stored = main_dtype(temporary, names)
        model.config.architectures = [type(model).__name__]
        model.config.dtype = stored
        model.config.save_pretrained(temporary)
        if model.can_generate():
            model.generation_config.save_pretrained(temporary)
        report |= {"dtype": named(stored), "method": "shard by shard", **(told or {})}
        _finish(bundle, temporary, settings, facts, report, started)
        if unmerged is None:
            report["parity"] = SKIPPED
        else:
            report |= compared(unmerged, probe_logits(reload(temporary)), computed=model.dtype, stored=stored)
        report |= {"seconds": round(time.monotonic() - started, 2), "peak_memory_bytes": peak_memory()}
        write_json(temporary / REPORT, report)
    _announce(folder, report)
    return folder


def _finish(
    bundle: Bundle,
    folder: Path,
    settings: Mapping[str, Any],
    facts: Facts,
    report: dict[str, Any],
    started: float,
) -> None:
    """Writes what stands beside the weights, and completes the report."""
    write_trained(bundle.model, folder, IN_MERGED)
    bundle.encoder.processor.save_pretrained(folder)
    # Both are in the weights now.
    write_settings(folder, {**settings, **FAMILIES.find(settings["type"]).complete})
    write_text(folder / "README.md", card_text("merged", settings, facts))
    report["base"] = facts.base
    report["tensors"] = check_names(folder)
    report["shards"] = shard_sizes(folder, [file.name for file in weight_files(folder)])
    report |= {"seconds": round(time.monotonic() - started, 2), "peak_memory_bytes": peak_memory()}
    write_json(folder / REPORT, report)


def merge_in_place(bundle: Bundle, parity: bool = True) -> dict[str, Any]:
    """Folds the adapter into the weights of `bundle.model` and gives the parity report.

    Compares the logits of one prompt about one generated image before and after, in the precision of the weights.
    """
    perception = bundle.model
    assert isinstance(perception, LanguageModel), "this exporter is for models that generate text"
    refuse_nothing_to_merge(perception)
    before: Tensor | None = probe_logits(bundle) if parity else None
    effect = None if before is None else adapter_effect(bundle, before)
    backbone: Any = perception.backbone
    perception.backbone = merged_weights(backbone)
    model = perception.pretrained
    if perception.rows is not None:
        perception.rows.fold(model)
    report: dict[str, Any] = {"adapter_effect": effect, "tied_embeddings": _tied(perception)}
    if before is None:
        return report | {"parity": SKIPPED}
    return report | compared(before, probe_logits(bundle), computed=model.dtype, stored=model.dtype)


def refuse_nothing_to_merge(perception: Model) -> None:
    """Refuses a model in which nothing trained."""
    if not isinstance(perception.backbone, PeftModel) and not perception.trained_state():
        raise ConfigError("there is no adapter to merge: the model has none")


def _tied(perception: Model) -> bool:
    model = perception.pretrained
    return bool(model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def _announce(folder: Path, report: Mapping[str, Any]) -> None:
    if report["parity"] != "checked":
        logger.warning("merged model written to %s; the comparison of logits was skipped", folder)
        return
    difference, effect = report["max_abs_difference"], report["adapter_effect"]
    logger.info("merged model written to %s (largest difference of logits %.2g)", folder, difference)
    if effect is not None and difference > LOST * effect:
        logger.warning(
            "the adapter moves the logits by %.2g, and rounding the merged weights to %s moves them by %.2g: much of "
            "what was trained is lost; use the adapter unmerged, or a base in fp32",
            effect,
            report["dtype"],
            difference,
        )
