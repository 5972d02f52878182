"""Early stopping on the validation loss."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class EarlyStopping(TrainerCallback):
    """Callback that ends the training after several evaluations without a lower validation loss.

    It has no state and reads the history of the trainer, which checkpoints restore. So a resumed run ends at the same
    update as an uninterrupted one. The callback of transformers starts to count from zero after a resume.

    Args:
        patience: Number of consecutive evaluations without improvement.
        threshold: Minimum decrease of the loss that counts as an improvement.
    """

    def __init__(self, patience: int, threshold: float = 0.0) -> None:
        self.patience, self.threshold = patience, threshold

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End a resumed run that had already ended."""
        self.on_evaluate(args, state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the training and log it if the patience is exhausted."""
        losses = [(row["step"], row["eval_loss"]) for row in state.log_history if "eval_loss" in row]
        best, idle = best_loss([loss for _, loss in losses], self.threshold)
        if idle < self.patience:
            return
        control.should_training_stop = True
        if state.is_world_process_zero:
            step, loss = losses[best]
            weights = (
                "its weights are loaded"
                if args.load_best_model_at_end
                else ("the last weights are kept; load_best_model_at_end=True would load those of that step")
            )
            logger.info(
                "stopped at step %d: no lower validation loss in %d evaluations since step %d (%.4f); %s",
                *(state.global_step, idle, step, loss, weights),
            )


def best_loss(losses: Sequence[float], threshold: float = 0.0) -> tuple[int, int]:
    """Return the index of the best loss and the number of losses after it.

    A loss is better than the best one before it if it is lower by more than `threshold`. NaN is never better.
    """
    best, lowest = 0, math.inf
    for i, loss in enumerate(losses):
        if loss < lowest - threshold:
            best, lowest = i, loss
    return best, max(0, len(losses) - 1 - best)
