"""The exporter 'adapter': a folder that PEFT loads, with the processor, `mllm.json` and a model card."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm.export.card import Facts, card_text
from mllm.export.settings import write_settings
from mllm.files import replaced_folder, write_text
from mllm.models.adapters import save_adapter
from mllm.registry import EXPORTERS
from mllm.structures import Bundle

logger = logging.getLogger(__name__)


@EXPORTERS.register_module(name="adapter")
def write(bundle: Bundle, folder: str | Path, *, settings: Mapping[str, Any], facts: Facts) -> Path:
    """Writes the trained adapter to `folder` in PEFT's format, with all that is needed to use it.

    The folder is complete from the moment it bears its name; one that stood there before is kept until then.
    """
    folder = Path(folder)
    with replaced_folder(folder) as temporary:
        save_adapter(bundle.model.backbone, temporary, facts.base)
        bundle.encoder.processor.save_pretrained(temporary)
        write_settings(temporary, settings)
        write_text(temporary / "README.md", card_text("adapter", settings, facts))
    logger.info("adapter written to %s", folder)
    return folder
