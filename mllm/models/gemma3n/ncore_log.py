"""Published log format of GEMMA 3NCORE: the phases that it logs and the keys of its `training_log.json`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mllm.config.hardware import Hardware
from mllm.config.schema import RunConfig
from mllm.family import FAMILIES
from mllm.files import write_text
from mllm.run_files import ENVIRONMENT_TABLE, EPOCHS

logger = logging.getLogger(__name__)


def show_start(config: RunConfig, hardware: Hardware, environment: Mapping[str, Any], folder: Path) -> None:
    """Log the phases Reservoir and Conduit, and write the environment to `environment.md` in `folder`."""
    log_reservoir(environment, hardware, folder)
    log_conduit(config, hardware)


def log_reservoir(environment: Mapping[str, Any], hardware: Hardware, folder: Path) -> None:
    """Log the phase Reservoir, the environment as a table, and write it to `environment.md`."""
    free = shutil.disk_usage(folder).free
    rows = {
        "Python": environment["python"],
        **environment["packages"],
        "device": hardware.name,
        "memory of the device": f"{hardware.memory / 1e9:.1f} GB" if hardware.memory else "that of the machine",
        "memory of the machine": f"{hardware.host_memory / 1e9:.1f} GB",
        "free on the disk": f"{free / 1e9:.1f} GB",
        "commit": environment["git"]["commit"] or "none",
    }
    lines = ["| item | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    write_text(folder / ENVIRONMENT_TABLE, "# Environment\n\n" + "\n".join(lines) + "\n")
    width = max(map(len, rows))
    table = "\n".join(f"  {key:<{width}}  {value}" for key, value in rows.items())
    logger.info("Reservoir: the environment\n%s", table)


def log_conduit(config: RunConfig, hardware: Hardware) -> None:
    """Log the phase Conduit: device, precision and quantization with their reasons."""
    logger.info(
        "Conduit: device, precision and quantization\n%s",
        "\n".join(f"  {line}" for line in choices(config, hardware)),
    )


def choices(config: RunConfig, hardware: Hardware) -> list[str]:
    """Return device, precision and quantization, each with its reason."""
    # Convolutions overflow in fp16, so vision parts are loaded in fp32 instead.
    precision = "fp32" if hardware.precision == "fp16" else hardware.precision
    device = "no GPU was found" if hardware.device == "cpu" else "it is the first card that PyTorch lists"
    stored = {
        "fp32": "the config does not set bf16" if hardware.device == "cuda" else "half precision is slow on a CPU",
        "bf16": "the config sets it and the card supports it",
    }[precision]
    args = config.model_args
    family = FAMILIES.find(args.type, args.part)
    bits = 4 if args.load_in_4bit else 8 if args.load_in_8bit else None
    if bits:
        quantized = f"quantization: {bits} bits, as the config sets"
    elif family.cannot_quantize is not None:
        quantized = f"quantization: none, because {family.cannot_quantize}"
    else:
        quantized = "quantization: none, as the config sets"
    return [
        f"device: {hardware.name}, because {device}",
        f"precision: {precision}, because {stored}",
        quantized,
    ]


def log_details(config: RunConfig) -> Callable[[Sequence[Mapping[str, float]], Path], dict[str, Any]]:
    """Return the function that adds GEMMA 3NCORE's keys to `training_log.json`, with the parameters of `config`."""
    model, training = config.model_args, config.training_args
    weights = [options.get("weight") for options in config.objectives.values() if options["type"] == "FeatureMatch"]
    start = weights[0] if weights else None
    parameters = {
        "sample_size": (config.data_args.train or {}).get("size"),
        "lr": training["learning_rate"],
        "epochs": training["num_train_epochs"],
        "feature_weight_start": start.get("start") if isinstance(start, dict) else start,
        "lora_r": model.lora_r,
        "lora_alpha": model.lora_alpha,
        "batch_size": training["per_device_train_batch_size"],
        "gradient_accumulation_steps": training["gradient_accumulation_steps"],
    }
    return partial(published_log, parameters)


def published_log(parameters: Mapping[str, Any], rows: Sequence[Mapping[str, float]], folder: Path) -> dict[str, Any]:
    """Return the keys of GEMMA 3NCORE's `training_log.json`, computed from the rows of a run's log.

    `train_losses` and `val_losses` have a mean for each finished epoch, None without a value; `epoch_details` adds the
    usage of the machine in percent and the peak memory of the GPU in GB. `folder` is the run folder.
    """
    details = []
    last = max((int(row.get("epoch", 0)) for row in rows), default=0)
    for epoch in range(1, last + 1):
        rows_of_epoch = [row for row in rows if epoch - 1 < row.get("epoch", 0) <= epoch]
        written = sorted((folder / EPOCHS).glob(f"epoch_{epoch:02d}_*"))
        details.append(
            {
                "epoch": epoch,
                "train_loss": _mean(rows_of_epoch, "loss"),
                "val_loss": _mean(rows_of_epoch, "eval_loss"),
                "cpu_usage_avg": _mean(rows_of_epoch, "cpu_percent"),
                "ram_usage_avg": _mean(rows_of_epoch, "ram_percent"),
                "gpu_mem_peak": max(
                    (row["peak_memory_gb"] for row in rows_of_epoch if "peak_memory_gb" in row), default=None
                ),
                "checkpoint_path": str(written[-1].relative_to(folder)) if written else None,
            }
        )
    validation = [row["val_loss"] for row in details]
    known = [loss for loss in validation if loss is not None]
    return {
        "train_losses": [row["train_loss"] for row in details],
        "val_losses": validation,
        "best_val_loss": min(known) if known else None,
        "parameters": dict(parameters),
        "epoch_details": details,
    }


def _mean(rows: Sequence[Mapping[str, float]], key: str) -> float | None:
    values = [row[key] for row in rows if key in row]
    return sum(values) / len(values) if values else None
