"""The exporter 'adapter': a folder that PEFT loads, with processor, settings, facts and model card."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import peft
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from mllm.errors import ConfigError
from mllm.export.facts import Facts
from mllm.export.folder import write_companions
from mllm.export.vllm import vllm_obstacles
from mllm.files import replaced_folder
from mllm.models.adapters.combine import save_adapter
from mllm.models.adapters.peft_targets import changed_by_peft
from mllm.models.adapters.trained_file import write_trained
from mllm.models.adapters.written import refuse_sharded_tensors
from mllm.protocols import Bundle, Model
from mllm.registry import EXPORTERS
from mllm.run_files import ADAPTER, ADAPTER_WEIGHTS

logger = logging.getLogger(__name__)


@EXPORTERS.register_module(name="adapter")
def write(bundle: Bundle, folder: str | Path, *, facts: Facts) -> Path:
    """Write the trained adapter to `folder` in the format of PEFT, with processor, settings, facts and model card.

    Trained parts other than the LoRA, such as heads, are in `heads.safetensors`; without a LoRA that file is the only
    one with weights. `export_report.json` contains the reasons why vLLM cannot load the adapter, if any. The folder is
    written under a temporary name first; an existing folder remains until the new one is complete. Raises `ConfigError`
    if this process has only parts of the tensors, or if the written files do not contain every trained tensor.
    """
    folder = Path(folder)
    refuse_sharded_tensors(bundle.model)
    with replaced_folder(folder) as temporary:
        has_other_weights = write_trained(bundle.model, temporary) is not None
        report = None
        if isinstance(bundle.model.backbone, PeftModel):
            save_adapter(bundle.model.backbone, temporary, facts.base)
            report = _report(temporary, bundle, bundle.model.backbone, has_other_weights)
        check_all_written(bundle.model, temporary)
        write_companions(temporary, ADAPTER, facts, bundle.encoder.processor, report)
    logger.info("adapter written to %s", folder)
    return folder


def check_all_written(model: Model, folder: Path) -> None:
    """Raise `ConfigError` if a trainable parameter of `model` is in none of the weight files in `folder`."""
    checked = {tensor.data_ptr() for tensor in model.trained_state().values()}  # `write_trained` compares these
    adapters, keys = r"$^", set()
    if isinstance(model.backbone, PeftModel):
        adapters = "|".join(map(re.escape, model.backbone.peft_config))
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as opened:
            keys = {key.removesuffix(".weight") for key in opened.keys()}  # noqa: SIM118 - not a mapping
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or parameter.data_ptr() in checked:
            continue
        key = re.sub(rf"\.({adapters})(?=\.|$)", "", name.removeprefix("backbone.")).removesuffix(".weight")
        if key not in keys:
            raise ConfigError(
                f"{name} was trained, but no file of the adapter would contain it, so nothing is written: train "
                "without this part, and please report the model type"
            )


def _report(folder: Path, bundle: Bundle, adapted: PeftModel, has_other_weights: bool) -> dict[str, Any]:
    """Return the content of `export_report.json` for the adapter in `folder`."""
    config, tensors = LoraConfig.from_pretrained(str(folder)), load_file(folder / ADAPTER_WEIGHTS)
    base: Any = adapted.get_base_model()
    if changed_by_peft(config, adapted):
        logger.warning(
            "PEFT %s converts the targets of a '%s' model, so its from_pretrained would leave out trained layers: use "
            "the adapter with mllm, or merge it (mllm merge)",
            peft.__version__,
            base.config.model_type,
        )
    obstacles = vllm_obstacles(config, tensors, bundle.model.towers.get("language"), has_other_weights)
    return {
        "base": config.base_model_name_or_path,
        "rank": config.r,
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "vllm": {"reads_it": not obstacles, "because": obstacles},
    }
