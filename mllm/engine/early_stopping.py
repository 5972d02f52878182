"""Early stopping on the validation loss."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mllm.run_files import checkpoint_step

logger = logging.getLogger(__name__)


class EarlyStopping(TrainerCallback):
    """Callback that ends the training after several evaluations without a lower validation loss.

    It reads the history of the trainer, which checkpoints restore, instead of a counter. So a resumed run ends at the
    same update as an uninterrupted one. The callback of transformers counts from zero after a resume.

    Args:
        patience: Number of consecutive evaluations without improvement.
        threshold: Minimum decrease of the loss that counts as an improvement.
    """

    def __init__(self, patience: int, threshold: float = 0.0) -> None:
        self.patience, self.threshold = patience, threshold
        self.is_exhausted = False
        """True: this callback ended the training."""

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
        control.should_training_stop = self.is_exhausted = True
        if state.is_world_process_zero:
            step, loss = losses[best]
            lower = (
                f"validation loss that is lower by more than {self.threshold:g}"
                if self.threshold
                else "lower validation loss"
            )
            logger.info(
                "stopped at step %d: no %s in %d evaluations since step %d (%.4f)",
                *(state.global_step, lower, idle, step, loss),
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log the step of the current weights of the model.

        Trainer loads the best checkpoint without regard to the threshold, and an evaluation between two checkpoints has
        no checkpoint. So this step can differ from the step from which the patience is counted.
        """
        if not state.is_world_process_zero:
            return
        metric = f"validation {str(args.metric_for_best_model).removeprefix('eval_')}"
        if not args.load_best_model_at_end:
            if self.is_exhausted:
                logger.info("the last weights are kept; load_best_model_at_end=True would load the best checkpoint")
        elif state.best_model_checkpoint is None:
            logger.warning("no checkpoint has a best %s, so the last weights are kept", metric)
        else:
            step = checkpoint_step(Path(state.best_model_checkpoint))
            logger.info("the weights of step %s are loaded: its %s is the best of all checkpoints", step, metric)


def best_loss(losses: Sequence[float], threshold: float = 0.0) -> tuple[int, int]:
    """Return the index of the best loss and the number of losses after it.

    A loss is better than the best one before it if it is lower by more than `threshold`. NaN is never better.
    """
    best, lowest = 0, math.inf
    for i, loss in enumerate(losses):
        if loss < lowest - threshold:
            best, lowest = i, loss
    return best, max(0, len(losses) - 1 - best)
