"""The phases of ATRIOM that a run of a seeing student shows: Reservoir, Conduit and Active (GEMMA 3NCORE)."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from mllm.config.hardware import Hardware
from mllm.config.schema import RunConfig
from mllm.files import write_text

logger = logging.getLogger(__name__)

ENVIRONMENT = "environment.md"


def reservoir(report: dict[str, Any], hardware: Hardware, folder: Path) -> None:
    """What there is: the environment as a table in the log and in `environment.md`, beside `environment.json`."""
    free = shutil.disk_usage(folder).free
    told = {
        "Python": report["python"],
        **report["packages"],
        "device": hardware.name,
        "memory of the device": f"{hardware.memory / 1e9:.1f} GB" if hardware.memory else "that of the machine",
        "memory of the machine": f"{hardware.host_memory / 1e9:.1f} GB",
        "free on the disk": f"{free / 1e9:.1f} GB",
        "commit": report["git"]["commit"] or "none",
    }
    lines = ["| what | here |", "|---|---|", *(f"| {key} | {value} |" for key, value in told.items())]
    write_text(folder / ENVIRONMENT, "# Environment\n\n" + "\n".join(lines) + "\n")
    width = max(map(len, told))
    table = "\n".join(f"  {key:<{width}}  {value}" for key, value in told.items())
    logger.info("Reservoir: what there is\n%s", table)


def conduit(config: RunConfig, hardware: Hardware) -> None:
    """How it flows: device, precision and quantization with their reasons; what flows, `describe_data` says."""
    logger.info("Conduit: what flows in, and how\n%s", "\n".join(f"  {line}" for line in choices(config, hardware)))


def choices(config: RunConfig, hardware: Hardware) -> list[str]:
    """Device, precision and quantization, each with its reason."""
    # Convolutions overflow fp16, so that what sees is loaded in fp32 instead.
    precision = "fp32" if hardware.precision == "fp16" else hardware.precision
    device = "no GPU was found" if hardware.device == "cpu" else "it is the first card that PyTorch sees"
    stored = {
        "fp32": "bf16 was not asked for" if hardware.device == "cuda" else "half precision is slow on a CPU",
        "bf16": "the config asks for it and the card has it",
    }[precision]
    bits = 4 if config.model_args.load_in_4bit else 8 if config.model_args.load_in_8bit else None
    if bits:
        quantized = f"quantization: {bits} bits, as the config asks"
    elif config.model_args.type == "gemma3n-student":
        quantized = "quantization: none, because the vision tower has convolutions and no Linear layer"
    else:
        quantized = "quantization: none was asked for"
    return [
        f"device: {hardware.name}, because {device}",
        f"precision: {precision}, because {stored}",
        quantized,
    ]
