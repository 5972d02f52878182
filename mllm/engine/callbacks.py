"""What happens around the updates: epochs, logs, plots, complete checkpoints, and a guard against NaN."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from mllm.engine.checkpoints import mark_complete, newest_checkpoint, rotate
from mllm.engine.meter import Meter
from mllm.engine.plots import plot_loss, plot_progress
from mllm.errors import TrainingError
from mllm.files import write_json, write_text

logger = logging.getLogger(__name__)

SKIPPED = "skipped_rows.txt"
"""The rows that `on_error='skip'` left out, one sentence each."""


def run_folder(args: TrainingArguments) -> Path:
    """The folder that a run writes to."""
    assert args.output_dir is not None
    return Path(args.output_dir)


Details = Callable[[list[dict[str, float]], Path], dict[str, Any]]
"""What a log says of its rows and of the run folder."""


class Epochs(TrainerCallback):
    """Tells the sampler which epoch it deals, also after a resume, and ends an epoch without updates in silence."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.first_step = 0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the epoch that the next iteration deals."""
        self.first_step = state.global_step
        self.sampler.set_epoch(state.global_step // len(self.sampler))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Saves and measures nothing again where a finished run was resumed."""
        if state.global_step == self.first_step:
            control.should_save = control.should_evaluate = control.should_log = False


def not_finite(args: TrainingArguments, state: TrainerState, what: str, value: float) -> TrainingError:
    """The error for a loss or gradient that is NaN or infinite."""
    kept = newest_checkpoint(run_folder(args))
    return TrainingError(
        f"the {what} is {value} at step {state.global_step + 1}; "
        + (f"the last good checkpoint is {kept}" if kept else "no checkpoint has been written yet")
        + f"; lower learning_rate (now {args.learning_rate:g}) or max_grad_norm (now {args.max_grad_norm:g}), "
        "or train in bf16 or fp32"
    )


class Guard(TrainerCallback):
    """Stops before an update whose gradient is not finite can spoil the weights."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Raises `TrainingError` where any gradient is NaN or infinite."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if gradients and not torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
            raise not_finite(args, state, "gradient", float("nan"))


class Checkpoints(TrainerCallback):
    """Marks a checkpoint complete once all of it is on the disk, and only then lets older ones go."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Marks and rotates, on the process that writes."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if args.should_save:
            folder = run_folder(args)
            mark_complete(folder / f"checkpoint-{state.global_step}")
            rotate(folder, self.limit, state.best_model_checkpoint)


class RunLog(TrainerCallback):
    """Keeps `training_log.json` and `loss.png` true at every moment.

    Rows come from the trainer's own history, which checkpoints restore, so a resumed run continues the same log.
    """

    def __init__(self, facts: dict[str, Any], meter: Meter, details: Details | None = None) -> None:
        self.facts = facts
        """What the log says beside its rows."""
        self.meter = meter
        self.details = details
        """What else the log says of its rows and the run folder; with it, each objective's term is drawn too."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remembers the rows that were skipped before a resume."""
        skipped = run_folder(args) / SKIPPED
        if state.global_step and skipped.is_file():
            self.meter.skip(skipped.read_text(encoding="utf-8").splitlines())

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the log again, whole, under a temporary name."""
        if state.is_world_process_zero:
            folder = run_folder(args)
            rows = rows_of(state)
            details = {} if self.details is None else self.details(rows, folder)
            write_json(folder / "training_log.json", {**self.facts, **details, "rows": rows})
            write_skipped(folder, self.meter.failures)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draws the loss."""
        if state.is_world_process_zero:
            plot_loss(rows_of(state), run_folder(args) / "loss.png")
            if self.details is not None:
                plot_progress(rows_of(state), run_folder(args) / "training_progress.png")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draws the loss, and lists the rows that any process skipped."""
        self.meter.skip(gather_object(list(self.meter.failures)))
        self.on_save(args, state, control)
        if state.is_world_process_zero:
            write_skipped(run_folder(args), self.meter.failures)


def write_skipped(folder: Path, failures: Iterable[str]) -> None:
    """Lists the rows that were left out, where there are any."""
    lines = [" ".join(sentence.split()) for sentence in failures]
    if lines:
        write_text(folder / SKIPPED, "\n".join(lines) + "\n")


def rows_of(state: TrainerState) -> list[dict[str, float]]:
    """The history's entries about updates and evaluations, the closing summary left out."""
    return [{"step": row["step"], **row} for row in state.log_history if "loss" in row or "eval_loss" in row]


class Progress(ProgressCallback):
    """A progress bar, and log lines that a person can read."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes one line above the bar."""
        if state.is_world_process_zero and self.training_bar is not None and logs:
            line = log_line(state.global_step, logs)
            if line:
                self.training_bar.write(line, file=sys.stderr)


def close_bars(callbacks: Iterable[Any]) -> None:
    """Ends the bars that an error leaves open, which would be drawn once more behind its sentence."""
    for callback in callbacks:
        if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
            callback.training_bar.close()


class Lines(TrainerCallback):
    """The same lines without a progress bar."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Logs one line."""
        line = log_line(state.global_step, logs) if logs and state.is_world_process_zero else ""
        if line:
            logger.info("%s", line)


def log_line(step: int, logs: dict[str, float]) -> str:
    """One entry of the log as a person reads it; the closing summary speaks of the updates since start or resume."""
    if "train_updates" in logs:
        since = f"the resume at step {logs['train_from_step']}" if logs["train_from_step"] else "the start"
        return (
            f"step {step:>5}  mean loss {logs['train_loss']:.4f} over the {logs['train_updates']:,} updates "
            f"since {since}  {logs['train_samples_per_second']:,.1f} samples/s"
        )
    if "eval_loss" in logs:
        return f"step {step:>5}  validation loss {logs['eval_loss']:.4f}"
    if "loss" not in logs:
        return ""
    return (
        f"step {step:>5}  loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}  "
        f"{logs['tokens_per_second']:,.0f} tokens/s  padding {100 * logs['padding_share']:.0f} %  "
        f"peak {logs['peak_memory_gb']:.2f} GB"
    )


def use_tensorboard_folder(folder: Path) -> None:
    """Tells transformers where its TensorBoard writer is to write; it reads this from the environment alone."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
