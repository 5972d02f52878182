"""The exporter 'student': the vision part of a model with its LoRA merged, and its head."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path

import torch

from mllm.export.comparison import compare_features, dtype_name, probe_features, round_weights
from mllm.export.export_report import shard_sizes
from mllm.export.facts import Facts
from mllm.export.folder import write_companions, write_model
from mllm.files import replaced_folder
from mllm.memory import peak_memory
from mllm.models.adapters.merge import merged_weights
from mllm.models.backbone.weight_files import weight_files
from mllm.models.vision_model import VisionModel
from mllm.protocols import Bundle
from mllm.registry import EXPORTERS
from mllm.run_files import MERGED

logger = logging.getLogger(__name__)


@EXPORTERS.register_module(name="student")
def write(bundle: Bundle, folder: str | Path, *, facts: Facts, dtype: torch.dtype | None = None) -> Path:
    """Write a vision model that `predict.py --model` loads: merged weights, head, image processor and card.

    Tensors have the names that they have in the whole model. `dtype` is the dtype of the written weights; None keeps
    theirs. The model of `bundle` does not change. Raises `ConfigError` if the features of the written weights differ
    from those of the unmerged model.
    """
    folder, started = Path(folder), time.monotonic()
    source = bundle.model
    assert isinstance(source, VisionModel), "this exporter is for part='vision'"
    model = copy.deepcopy(source).eval()
    unmerged = probe_features(model)
    model.backbone = merged_weights(model.backbone)  # type: ignore[arg-type]
    round_weights(model.pretrained, dtype)
    stored = dtype or model.pretrained.dtype
    report = compare_features(unmerged, probe_features(model), stored)
    with replaced_folder(folder) as temporary:
        write_model(model, temporary, dtype)
        report |= {
            "dtype": dtype_name(stored),
            "base": facts.base,
            "shards": shard_sizes(weight_files(temporary)),
            "seconds": round(time.monotonic() - started, 2),
            "peak_memory_bytes": peak_memory(),
        }
        write_companions(temporary, MERGED, facts, bundle.encoder.processor, report)
    logger.info(
        "student written to %s (largest relative difference of features %.2g)",
        folder,
        report["max_relative_difference"],
    )
    return folder
