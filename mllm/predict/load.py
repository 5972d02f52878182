"""Loading of models for generation."""

from __future__ import annotations

import logging
from dataclasses import replace

from mllm.config.hardware import Hardware, detect
from mllm.config.rules.precision import AMPERE
from mllm.config.schema import ModelArgs
from mllm.models.builder.builder import load_pretrained
from mllm.protocols import Bundle

logger = logging.getLogger(__name__)


def best_hardware() -> Hardware:
    """Return this machine with its fastest safe precision: bf16, fp16 on older GPUs, fp32 on a CPU."""
    hardware = detect()
    if hardware.capability is None:
        return hardware
    return replace(hardware, precision="bf16" if hardware.capability >= AMPERE else "fp16")


def load_for_answers(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Load a model onto the device of `hardware` for generation."""
    logger.info("loading %s on %s in %s", args.model_name_or_path, hardware.name, hardware.precision)
    bundle = load_pretrained(args, hardware)
    if not (args.load_in_4bit or args.load_in_8bit):
        # Quantized weights are placed during loading and must not be moved.
        bundle.model.to(hardware.device)
    return bundle
