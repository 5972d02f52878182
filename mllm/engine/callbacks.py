"""Callbacks for epochs and checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mllm.engine.checkpoints import mark_complete, rotate
from mllm.engine.run_log import run_folder
from mllm.run_files import checkpoint_name


class Epochs(TrainerCallback):
    """Callback that sets the epoch of the sampler, also after a resume, and the intervals of the config."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the intervals of logs, evaluations and checkpoints, which Trainer takes from a checkpoint."""
        state.compute_steps(args, state.max_steps)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch of the next iteration."""
        self.first_step = state.global_step
        self.sampler.set_epoch(state.global_step // len(self.sampler))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Cancel saving, evaluation and logging after an epoch without updates, as when a finished run is resumed."""
        if state.global_step == self.first_step:
            control.should_save = control.should_evaluate = control.should_log = False


class Checkpoints(TrainerCallback):
    """Callback that marks a checkpoint as complete when all its files are on the disk, and then removes older ones.

    Args:
        limit: Number of checkpoints to keep. None: all.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the new checkpoint and remove older ones, on the process that writes."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if args.should_save:
            folder = run_folder(args)
            mark_complete(folder / checkpoint_name(state.global_step))
            rotate(folder, self.limit, state.best_model_checkpoint)
