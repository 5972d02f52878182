"""Folders with the trained weights of every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
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
