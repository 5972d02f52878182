"""Log lines and progress bar of a training."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

logger = logging.getLogger(__name__)


class ProgressBar(ProgressCallback):
    """Progress bar with one line of text per log entry."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line above the bar."""
        if state.is_world_process_zero and self.training_bar is not None and logs:
            line = log_line(state.global_step, logs, state.max_steps)
            if line:
                self.training_bar.write(line, file=sys.stderr)


class LogLines(TrainerCallback):
    """One line of text per log entry, without a progress bar."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log one line."""
        line = log_line(state.global_step, logs, state.max_steps) if logs and state.is_world_process_zero else ""
        if line:
            logger.info("%s", line)


def close_bars(callbacks: Iterable[Any]) -> None:
    """Close the progress bars that are still open after an error. An open bar would be drawn below the message."""
    for callback in callbacks:
        if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
            callback.training_bar.close()


def log_line(step: int, logs: dict[str, float], total: int) -> str:
    """Format a log entry as one line; empty for an entry without a loss. `total` is the last step of the run.

    The times are those of the training, see `Meter.seconds`.
    """
    if "train_updates" in logs:
        start = f"the resume at step {logs['train_from_step']}" if logs["train_from_step"] else "the start"
        updates = f"the {logs['train_updates']:,} update{'s' * (logs['train_updates'] != 1)}"
        return (
            f"step {step:>5}  mean loss {logs['train_loss']:.4f} over {updates} since {start}  "
            f"{logs['train_samples_per_second']:,.1f} samples/s"
        )
    if "eval_loss" in logs:
        return f"step {step:>5}  validation loss {logs['eval_loss']:.4f}"
    if "loss" not in logs:
        return ""
    return (
        f"step {step:>5}  loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}  "
        f"{logs['tokens_per_second']:,.0f} tokens/s  padding {100 * logs['padding_share']:.0f} %  "
        f"peak {logs['peak_memory_gb']:.2f} GB  "
        f"{_clock(logs['seconds'])} passed, {_clock(logs['seconds_left'])} left to step {total}"
    )


def _clock(seconds: float) -> str:
    """Format seconds as `H:MM:SS`."""
    return str(timedelta(seconds=round(seconds)))
