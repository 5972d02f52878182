"""What a run tells epoch by epoch: losses, machine and checkpoint, under the keys that GEMMA 3NCORE published."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mllm.engine.run_log import run_folder

FOLDER = "epochs"


class EpochFolders(TrainerCallback):
    """Callback that writes the trained weights to `epochs/epoch_01_YYYYmmdd_HHMMSS/` at the end of every epoch."""

    def __init__(self, write: Callable[[Path], Any]) -> None:
        self.write = write

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the folder of a complete epoch, unless it exists from before a resume."""
        epoch = state.epoch or 0.0
        number = round(epoch)
        # A run may end within an epoch (max_steps). An incomplete epoch has no folder.
        if not state.is_world_process_zero or not math.isclose(epoch, number, abs_tol=1e-6):
            return
        parent = run_folder(args) / FOLDER
        if number and not any(parent.glob(f"epoch_{number:02d}_*")):
            parent.mkdir(parents=True, exist_ok=True)
            self.write(parent / f"epoch_{number:02d}_{time.strftime('%Y%m%d_%H%M%S')}")


def published_log(parameters: Mapping[str, Any], rows: Sequence[Mapping[str, float]], folder: Path) -> dict[str, Any]:
    """The keys of GEMMA 3NCORE's `training_log.json`, out of the rows of ours.

    `train_losses` and `val_losses` have a mean for each finished epoch, None where nothing was measured;
    `epoch_details` the usage of the machine in percent and the peak of its memory in GB beside them.
    """
    details = []
    last = max((int(row.get("epoch", 0)) for row in rows), default=0)
    for epoch in range(1, last + 1):
        own = [row for row in rows if epoch - 1 < row.get("epoch", 0) <= epoch]
        written = sorted((folder / FOLDER).glob(f"epoch_{epoch:02d}_*"))
        details.append(
            {
                "epoch": epoch,
                "train_loss": _mean(own, "loss"),
                "val_loss": _mean(own, "eval_loss"),
                "cpu_usage_avg": _mean(own, "cpu_percent"),
                "ram_usage_avg": _mean(own, "ram_percent"),
                "gpu_mem_peak": max((row["peak_memory_gb"] for row in own if "peak_memory_gb" in row), default=None),
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
