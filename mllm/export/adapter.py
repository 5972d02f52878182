"""The exporter 'adapter': a folder that PEFT loads, with the processor, `mllm.json` and a model card."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel

from mllm.export.card import Facts, card_text
from mllm.export.settings import write_settings
from mllm.files import replaced_folder, write_text
from mllm.models.adapters import save_adapter
from mllm.models.head_files import write_trained
from mllm.registry import EXPORTERS
from mllm.structures import Bundle

logger = logging.getLogger(__name__)


@EXPORTERS.register_module(name="adapter")
def write(bundle: Bundle, folder: str | Path, *, settings: Mapping[str, Any], facts: Facts) -> Path:
    """Writes the trained adapter to `folder` in PEFT's format, with all that is needed to use it.

    What trained beside the LoRA, such as heads, is in `heads.safetensors`; a run without LoRA has that alone.
    The folder is complete from the moment it bears its name; one that stood there before is kept until then.
    """
    folder = Path(folder)
    with replaced_folder(folder) as temporary:
        if isinstance(bundle.model.backbone, PeftModel):
            save_adapter(bundle.model.backbone, temporary, facts.base)
        write_trained(bundle.model, temporary)
        bundle.encoder.processor.save_pretrained(temporary)
        write_settings(temporary, settings, facts.base)
        write_text(temporary / "README.md", card_text("adapter", settings, facts))
    logger.info("adapter written to %s", folder)
    return folder
