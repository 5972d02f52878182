"""The end of a training whose validation loss has stopped falling."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class EarlyStopping(TrainerCallback):
    """Ends the training after `patience` evaluations in a row without a lower validation loss.

    It reads the history, which checkpoints restore, and remembers nothing itself, so a resumed run ends where the
    uninterrupted one does. transformers' own callback counts in memory and starts from zero after a resume.
    """

    def __init__(self, patience: int, threshold: float = 0.0) -> None:
        self.patience, self.threshold = patience, threshold

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends a resumed run that had ended so."""
        self.on_evaluate(args, state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ends the training where patience has run out, and says so."""
        measured = [(row["step"], row["eval_loss"]) for row in state.log_history if "eval_loss" in row]
        best, idle = progress([loss for _, loss in measured], self.threshold)
        if idle < self.patience:
            return
        control.should_training_stop = True
        if state.is_world_process_zero:
            step, loss = measured[best]
            kept = (
                "its weights are loaded"
                if args.load_best_model_at_end
                else ("the last weights are kept; load_best_model_at_end=True would load those of that step")
            )
            logger.info(
                "stopped at step %d: no lower validation loss in %d evaluations since step %d (%.4f); %s",
                *(state.global_step, idle, step, loss, kept),
            )


def progress(losses: Sequence[float], threshold: float = 0.0) -> tuple[int, int]:
    """Which of the losses is the best, and how many came after it.

    A loss is better if it is more than `threshold` below the best before it, so slow progress adds up; NaN never is.
    """
    best, lowest = 0, math.inf
    for i, loss in enumerate(losses):
        if loss < lowest - threshold:
            best, lowest = i, loss
    return best, max(0, len(losses) - 1 - best)
