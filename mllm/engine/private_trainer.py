"""The training loop with differential privacy: drawn by chance, clipped unit by unit, noisy, and counted."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mllm.engine.callbacks import not_finite, run_folder
from mllm.engine.learner import Learner
from mllm.engine.privacy.clipping import ClippedSum
from mllm.engine.privacy.ledger import Ledger
from mllm.engine.privacy.mechanism import Mechanism, continued, save_ledger
from mllm.engine.privacy.noise import Noise
from mllm.engine.privacy.per_sample import Tape, images_in, stacked
from mllm.engine.privacy.proof import check_gradients
from mllm.engine.privacy.record import privacy_record, write_record
from mllm.engine.trainer import MultimodalTrainer
from mllm.errors import ConfigError, memory_advised
from mllm.structures import Batch, LogicalBatch

logger = logging.getLogger(__name__)


class PrivateTrainer(MultimodalTrainer):
    """Trains a Learner so that what it learns of any one unit is bounded by (epsilon, delta) (arXiv:1607.00133).

    The sampler draws every update's units by chance, perhaps none; pieces of the draw run one after another; each
    unit's gradient is clipped, and noise is added to the sum, on one process, before all divide it by the expected
    number of units. Every update goes into the ledger, which lies in every checkpoint. Training ends before an update
    that would exceed the target. `synthetic` takes the place of the data in all that is looked at before step 1.
    """

    def __init__(
        self, learner: Learner, args: TrainingArguments, *, mechanism: Mechanism, synthetic: list[Any], **options: Any
    ) -> None:
        assert learner.reduction == "samples", "a unit's loss must not depend on who else is drawn"
        assert args.max_grad_norm == 0, "gradients are clipped unit by unit, before the noise"
        self.mechanism, self.synthetic = mechanism, synthetic
        self.ledger = Ledger()
        self.tape = Tape(learner, images_in(learner))
        self.noise = Noise(mechanism.secure_mode, mechanism.test_noise_seed)
        self._last_step: int | None = None
        super().__init__(learner, args, **options)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, KeepLedger):
                callback.trainer = self
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ConfigError(
                "privacy_args: no process may hold a part of the gradients alone, because units are clipped whole: "
                "leave fsdp and deepspeed out of training_args"
            )

    def train(
        self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: list[str] | None = None
    ) -> Any:
        """Trains from the start or from a checkpoint, whose ledger goes on."""
        if resume_from_checkpoint:
            self.ledger, self.mechanism = continued(Path(resume_from_checkpoint), self.mechanism)
        self.mechanism = self.mechanism.with_noise(self.planned_steps)
        self._last_step = None
        logger.info(
            "privacy: %d %ss, each drawn with probability %.4g, clipped to %g, noise multiplier %.4g",
            *(self.mechanism.units, self.mechanism.unit, self.mechanism.sample_rate, self.mechanism.clip_norm),
            self.mechanism.sigma,
        )
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    @property
    def record(self) -> dict[str, Any]:
        """What `privacy.json` says of the updates so far."""
        return privacy_record(self.mechanism, self.ledger)

    @property
    def planned_steps(self) -> int:
        """Updates of the whole training, as Trainer counts them."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * len(self.train_sampler))

    def first_batches(self) -> Iterator[LogicalBatch]:
        """A synthetic batch: what is looked at before step 1 is not the data."""
        collate: Any = self.data_collator
        yield collate(self.synthetic)

    def preflight(self) -> LogicalBatch:
        """The same on a synthetic batch, and that every sample's gradient is its own."""
        batch = super().preflight()
        collate: Any = self.data_collator
        alone = collate(self.synthetic[-1:]).pieces[0]
        check_gradients(self.learner, self.tape, batch.pieces, alone, self.accelerator)
        return batch

    def get_batch_samples(
        self, epoch_iterator: Iterator[LogicalBatch], num_batches: int, device: torch.device
    ) -> tuple[list[LogicalBatch], Any]:
        """The next draw and its samples on all processes; none once another update would exceed the target."""
        step = self.state.global_step
        if self._last_step is None:
            self._last_step = step + self.mechanism.affordable(self.ledger, max(0, self.state.max_steps - step))
        if self._last_step <= step < self.state.max_steps:
            logger.warning(
                "privacy: training ends after %d updates, because another would exceed epsilon %g",
                *(step, self.mechanism.target_epsilon),
            )
            self.control.should_training_stop = self.control.should_save = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _global_counts(self, batch: LogicalBatch, device: torch.device) -> dict[str, Tensor]:
        """Samples of a draw on all processes."""
        return {"samples": self.accelerator.reduce(torch.tensor(batch.samples, device=device), "sum")}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,  # type: ignore[override]
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The sum of the samples' losses."""
        outputs = model(student=inputs.student, targets=inputs.targets)
        samples = inputs.samples
        share = samples / num_items_in_batch["samples"]
        self.meter.add({name: term * share for name, term in outputs.items() if name != "loss"})
        loss = outputs["loss"] * samples
        return (loss, outputs) if return_outputs else loss

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: LogicalBatch, num_items_in_batch: Any = None
    ) -> Tensor:
        """One noisy update's gradient, and its line in the ledger; an empty draw gives noise alone."""
        learner = self.learner  # never what distributes it: gradients meet here, once they are clipped
        learner.train()
        mechanism, step = self.mechanism, self.state.global_step
        groups = self.tape.groups if mechanism.clipping == "per_layer" else None
        clipped = ClippedSum(self.tape.parameters, mechanism.clip_norm, groups)
        total = torch.zeros((), device=self.args.device)
        with memory_advised(self.memory_advice, f" at step {step + 1}"):
            for piece in inputs.pieces:
                total += self._add_piece(clipped, learner, piece.to(self.args.device), num_items_in_batch)
        clipped.finish()
        if not torch.isfinite(total):
            raise not_finite(self.args, self.state, "loss", float(total))
        if self.accelerator.is_main_process:
            self.noise.add(clipped.flat, mechanism.sigma * mechanism.clip_norm, step)
        clipped.flat.copy_(self.accelerator.reduce(clipped.flat, "sum"))
        for parameter, gradient in zip(clipped.parameters, clipped.gradients(mechanism.expected_units), strict=True):
            parameter.grad = gradient
        self.ledger.add(mechanism.sigma, mechanism.sample_rate)
        drawn = int(num_items_in_batch["samples"])
        mean = total * self.accelerator.num_processes / max(1, drawn)
        self.meter.step(float(mean), idle=not drawn)
        return mean

    def _add_piece(self, clipped: ClippedSum, learner: Learner, piece: Batch, counts: dict[str, Tensor]) -> Tensor:
        """Adds a piece's clipped gradients to the sum; gives the sum of its samples' losses."""
        with self.tape.recording(piece.samples, piece.images) as gradients:
            with self.compute_loss_context_manager():
                loss = self.compute_loss(learner, piece, num_items_in_batch=counts)
            if loss.requires_grad:  # not where a vision tower trains alone and no sample has an image
                self.accelerator.backward(loss)
            clipped.add(stacked(gradients, clipped.parameters, piece.samples), piece.units)
        return loss.detach()


class KeepLedger(TrainerCallback):
    """Puts the ledger into every checkpoint, and the privacy record beside them."""

    trainer: PrivateTrainer

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes both before the checkpoint is marked complete."""
        if args.should_save:
            folder = run_folder(args) / f"checkpoint-{state.global_step}"
            save_ledger(folder, self.trainer.ledger, self.trainer.mechanism)
        self.on_train_end(args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes the record of all updates so far."""
        if state.is_world_process_zero:
            write_record(run_folder(args), self.trainer.mechanism, self.trainer.ledger)


class SaveBelow(TrainerCallback):
    """Saves a checkpoint when the validation loss first falls below one of some thresholds.

    The loss chooses what is kept, so the validation split must hold nothing that is to be protected.
    """

    def __init__(self, thresholds: Iterable[float]) -> None:
        self.thresholds = list(thresholds)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Asks for a checkpoint where no earlier loss, before a resume neither, was below the same threshold."""
        loss = (metrics or {})["eval_loss"]
        rows = [row for row in state.log_history if "eval_loss" in row and row["step"] < state.global_step]
        lowest = min((row["eval_loss"] for row in rows), default=math.inf)
        if any(loss < threshold <= lowest for threshold in self.thresholds):
            control.should_save = True
