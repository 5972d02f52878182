"""Log of a run: `training_log.json`, `loss.png` and the list of skipped rows."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mllm.engine.meter import Meter
from mllm.engine.plots import plot_loss
from mllm.files import replaced_path, write_json, write_text
from mllm.run_files import LOSS_PLOT, PROGRESS_PLOT, SKIPPED_ROWS, TRAINING_LOG
from mllm.structures import Failure

PLOT_INTERVAL = 30.0
"""Fewest seconds between two plots at checkpoints, and before the first."""
SPLIT_MARK = "# "
"""Beginning of a line of `skipped_rows.txt` that names the split of the rows below it."""
Details = Callable[[list[dict[str, float]], Path], dict[str, Any]]
"""Function of the rows and the run folder that returns additional keys of `training_log.json`."""


def run_folder(args: TrainingArguments) -> Path:
    """Return the run folder of a trainer."""
    assert args.output_dir is not None
    return Path(args.output_dir)


class RunLog(TrainerCallback):
    """Callback that writes `training_log.json` at every log entry and plots the loss at checkpoints and at the end.

    A plot takes as long as several small updates, so it is drawn every `PLOT_INTERVAL` seconds at most.

    Rows come from the history of the trainer. Checkpoints restore it, so a resumed run continues its log.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        meter: Meter,
        details: Details | None = None,
        terms: Mapping[str, str] | None = None,
    ) -> None:
        self.facts = facts
        """Keys of `training_log.json` before the rows."""
        self.meter = meter
        self.details = details
        """Additional keys. With it, `training_progress.png` is written, too."""
        self.terms = terms or {}
        """Name of each objective -> its label in plots."""
        self.plot_due = math.inf
        """Value of `time.monotonic()` from which a checkpoint plots the loss."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the interval before the first plot."""
        self.plot_due = time.monotonic() + PLOT_INTERVAL

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the whole log."""
        if state.is_world_process_zero:
            folder = run_folder(args)
            rows = rows_of(state)
            details = {} if self.details is None else self.details(rows, folder)
            write_json(folder / TRAINING_LOG, {**self.facts, **details, "rows": rows})
            write_skipped(folder, self.meter.failures.values())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Plot the loss, unless it was plotted a short time ago."""
        if time.monotonic() >= self.plot_due:
            self.plot(args, state)
            self.plot_due = time.monotonic() + PLOT_INTERVAL

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock, plot the loss and list the skipped rows of all processes."""
        self.meter.stop(args.device)
        for split, failure in gather_object(list(self.meter.failures.values())):
            self.meter.skip(split, [failure])
        self.plot(args, state)
        if state.is_world_process_zero:
            write_skipped(run_folder(args), self.meter.failures.values())

    def plot(self, args: TrainingArguments, state: TrainerState) -> None:
        """Plot the loss with the terms of several objectives, on the first process."""
        if state.is_world_process_zero:
            folder, has_several = run_folder(args), len(self.terms) > 1
            plot_loss(rows_of(state), folder / LOSS_PLOT, self.terms if has_several else {})
            if self.details is not None and has_several:  # the same plot
                with replaced_path(folder / PROGRESS_PLOT) as temporary:
                    shutil.copyfile(folder / LOSS_PLOT, temporary)
            elif self.details is not None:
                plot_loss(rows_of(state), folder / PROGRESS_PLOT, self.terms)


def write_skipped(folder: Path, failures: Iterable[tuple[str, Failure]]) -> None:
    """Write the skipped rows to `skipped_rows.txt`: for each split a line `# SPLIT`, then one error message per line.

    Does nothing without any.
    """
    messages: dict[str, list[str]] = {}
    for split, failure in failures:
        messages.setdefault(split, []).append(failure.message)
    if messages:
        lines = [line for split, rows in messages.items() for line in (SPLIT_MARK + split, *rows)]
        write_text(folder / SKIPPED_ROWS, "\n".join(lines) + "\n")


def read_skipped(folder: Path) -> list[tuple[str, Failure]]:
    """Return split and failure of the rows that `write_skipped` wrote to a folder; empty without the file."""
    path, failures = folder / SKIPPED_ROWS, list[tuple[str, Failure]]()
    split = "train"  # runs of older versions wrote no splits
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        if line.startswith(SPLIT_MARK):
            split = line.removeprefix(SPLIT_MARK)
        else:
            failures.append((split, Failure(line)))
    return failures


def rows_of(state: TrainerState) -> list[dict[str, float]]:
    """Return the entries of the history about updates and evaluations, without the final summary."""
    return [{"step": row["step"], **row} for row in state.log_history if "loss" in row or "eval_loss" in row]
