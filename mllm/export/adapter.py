"""The exporter 'adapter': a folder that PEFT loads, with the processor, `mllm.json` and a model card."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file

from mllm.export.card import Facts, card_text
from mllm.export.export_report import FILE as REPORT
from mllm.export.settings import write_settings
from mllm.export.vllm import vllm_obstacles
from mllm.files import replaced_folder, write_json, write_text
from mllm.models.adapters.combine import save_adapter
from mllm.models.adapters.trained_file import write_trained
from mllm.registry import EXPORTERS
from mllm.structures import Bundle

logger = logging.getLogger(__name__)


@EXPORTERS.register_module(name="adapter")
def write(bundle: Bundle, folder: str | Path, *, settings: Mapping[str, Any], facts: Facts) -> Path:
    """Writes the trained adapter to `folder` in PEFT's format, with all that is needed to use it.

    What trained beside the LoRA, such as heads, is in `heads.safetensors`; a run without LoRA has that alone.
    `export_report.json` says whether vLLM reads it.
    The folder is complete from the moment it bears its name; one that stood there before is kept until then.
    """
    folder = Path(folder)
    with replaced_folder(folder) as temporary:
        beside = write_trained(bundle.model, temporary) is not None
        if isinstance(bundle.model.backbone, PeftModel):
            save_adapter(bundle.model.backbone, temporary, facts.base)
            write_json(temporary / REPORT, _report(temporary, bundle, beside))
        bundle.encoder.processor.save_pretrained(temporary)
        write_settings(temporary, settings, facts.base)
        write_text(temporary / "README.md", card_text("adapter", settings, facts))
    logger.info("adapter written to %s", folder)
    return folder


def _report(folder: Path, bundle: Bundle, beside: bool) -> dict[str, Any]:
    """What is known of an adapter that lies in `folder`."""
    config, tensors = LoraConfig.from_pretrained(str(folder)), load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    obstacles = vllm_obstacles(config, tensors, bundle.model.towers.get("language"), beside)
    return {
        "base": config.base_model_name_or_path,
        "rank": config.r,
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "vllm": {"reads_it": not obstacles, "because": obstacles},
    }
