"""Training loop with differential privacy: Poisson draws, clipping per unit, noise and a ledger."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mllm.engine.learner import Learner
from mllm.engine.privacy.clipping import ClippedSum
from mllm.engine.privacy.ledger import Ledger
from mllm.engine.privacy.mechanism import Mechanism, resume_ledger, save_ledger
from mllm.engine.privacy.noise import Noise
from mllm.engine.privacy.per_sample import Tape, images_in, stacked
from mllm.engine.privacy.proof import check_gradients
from mllm.engine.privacy.record import privacy_record, write_record
from mllm.engine.rates import start_above_zero
from mllm.engine.run_log import run_folder
from mllm.engine.trainer import MultimodalTrainer
from mllm.errors import ConfigError, advise_on_memory
from mllm.models.encoding.packing import row_lengths
from mllm.run_files import checkpoint_name
from mllm.structures import Batch, Encoded, Failure, LogicalBatch

logger = logging.getLogger(__name__)


class PrivateTrainer(MultimodalTrainer):
    """Trainer with (epsilon, delta)-differential privacy for every unit of the data (DP-SGD, arXiv:1607.00133).

    The sampler draws the units of an update at random, possibly none. The gradient of each unit is clipped, the main
    process adds noise to the sum, and all processes divide it by the expected number of units. Every update is recorded
    in the ledger, which every checkpoint contains. Training ends before an update that would exceed the target.

    Args:
        learner: Learner with reduction "samples".
        args: Arguments of transformers, with `max_grad_norm` 0.
        mechanism: Sampling, clipping and noise.
        synthetic: Artificial encoded samples. They replace the data in all checks before the first update.
        options: Further arguments of `MultimodalTrainer`.
    """

    def __init__(
        self, learner: Learner, args: TrainingArguments, *, mechanism: Mechanism, synthetic: list[Any], **options: Any
    ) -> None:
        assert learner.reduction == "samples", "the loss of a unit must not depend on the other units of the draw"
        assert args.max_grad_norm == 0, "gradients are clipped per unit, before the noise is added"
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
                "privacy_args: FSDP and DeepSpeed shard gradients, but clipping needs complete gradients: "
                "remove fsdp and deepspeed from training_args"
            )

    def train(
        self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: list[str] | None = None
    ) -> Any:
        """Train from the start, or continue from a checkpoint and its ledger."""
        if resume_from_checkpoint:
            self.ledger, self.mechanism = resume_ledger(Path(resume_from_checkpoint), self.mechanism)
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
        """Return the privacy record of the updates so far."""
        return privacy_record(self.mechanism, self.ledger)

    @property
    def planned_steps(self) -> int:
        """Return the number of updates of the whole training, as Trainer counts them."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * len(self.train_sampler))

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Return the schedule of the config, with a rate above 0 in the first update, which spends privacy, too."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        start_above_zero(scheduler, self.args.get_warmup_steps(num_training_steps))
        return scheduler

    def first_updates(self) -> Iterator[tuple[Sequence[Encoded | Failure], LogicalBatch]]:
        """Yield artificial samples and their batch, so that checks do not read the data."""
        collate: Any = self.data_collator
        yield self.synthetic, collate(self.synthetic)

    def preflight(self) -> LogicalBatch:
        """Run the checks on an artificial batch, and compare per-sample gradients with those of autograd."""
        batch = super().preflight()
        collate: Any = self.data_collator
        last = self.synthetic[-1]
        kind = (last.images_per_row, last.has_features)  # others never share a piece with it
        alike = [item for item in self.synthetic if (item.images_per_row, item.has_features) == kind]
        # Samples of units keep their order: the last one of the last piece must be `last`, which need not be shortest.
        pieces = collate([replace(item, unit=number) for number, item in enumerate(alike)]).pieces
        check_gradients(self.learner, self.tape, pieces, collate([last]).pieces[0], self.accelerator)
        return batch

    def get_batch_samples(
        self, epoch_iterator: Iterator[LogicalBatch], num_batches: int, device: torch.device
    ) -> tuple[list[LogicalBatch], Any]:
        """Return the next draw and its number of samples; no draw if another update would exceed the target."""
        step = self.state.global_step
        if self._last_step is None:
            self._last_step = step + self.mechanism.affordable(self.ledger, max(0, self.state.max_steps - step))
        if self._last_step <= step < self.state.max_steps:
            logger.warning(
                "privacy: training ends after %d updates, because another one would exceed epsilon %g",
                *(step, self.mechanism.target_epsilon),
            )
            self.control.should_training_stop = self.control.should_save = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _global_counts(self, batch: LogicalBatch, device: torch.device) -> dict[str, Tensor]:
        """Return the number of samples of a draw on all processes."""
        samples = torch.tensor(batch.samples).to(device, non_blocking=True)
        return {"samples": self.accelerator.reduce(samples, "sum")}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,  # type: ignore[override]
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the sum of the losses of the samples."""
        outputs = model(student=inputs.student, targets=inputs.targets)
        samples = inputs.samples
        share = samples / num_items_in_batch["samples"]
        self.meter.add({name: term * share for name, term in outputs.items() if name != "loss"})
        loss = outputs["loss"] * samples
        return (loss, outputs) if return_outputs else loss

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: LogicalBatch, num_items_in_batch: Any = None
    ) -> Tensor:
        """Compute the noisy gradient of an update and record it in the ledger. An empty draw has noise only.

        A non-finite loss or gradient is found by `FiniteCheck`. Its update is in the ledger of this process, but the
        weights do not change and the error comes before anything is saved.
        """
        learner = self.learner  # without DDP: gradients are summed over processes below, after clipping
        learner.train()
        mechanism, step = self.mechanism, self.state.global_step
        groups = self.tape.groups if mechanism.clipping == "per_layer" else None
        clipped = ClippedSum(self.tape.parameters, mechanism.clip_norm, groups)
        total = torch.zeros((), device=self.args.device)
        with advise_on_memory(self.memory_advice, f" at step {step + 1}"):
            for piece in inputs.pieces:
                total += self._add_piece(clipped, learner, piece.to(self.args.device), num_items_in_batch)
        clipped.finish()
        self.finite_check.loss = total
        if self.accelerator.is_main_process:
            self.noise.add(clipped.flat, mechanism.sigma * mechanism.clip_norm, step)
        clipped.flat.copy_(self.accelerator.reduce(clipped.flat, "sum"))
        for parameter, gradient in zip(clipped.parameters, clipped.gradients(mechanism.expected_units), strict=True):
            parameter.grad = gradient
        self.ledger.add(mechanism.sigma, mechanism.sample_rate)
        is_alone = self.accelerator.num_processes == 1
        drawn = inputs.samples if is_alone else int(num_items_in_batch["samples"])
        mean = total * self.accelerator.num_processes / max(1, drawn)
        self.meter.step(mean, idle=not drawn)
        return mean

    def _add_piece(self, clipped: ClippedSum, learner: Learner, piece: Batch, counts: dict[str, Tensor]) -> Tensor:
        """Add the clipped gradients of a piece to the sum, and return the sum of the losses of its samples, []."""
        with self.tape.recording(piece.samples, piece.images, row_lengths(piece.student)) as gradients:
            with self.compute_loss_context_manager():
                loss = self.compute_loss(learner, piece, num_items_in_batch=counts)
            if loss.requires_grad:  # False if only a vision tower trains and no sample has an image
                self.accelerator.backward(loss)
            clipped.add(stacked(gradients, clipped.parameters, piece.samples), piece.units)
        return loss.detach()


class KeepLedger(TrainerCallback):
    """Callback that writes the ledger to every checkpoint and the privacy record to the run folder."""

    trainer: PrivateTrainer

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write both, before the checkpoint is marked as complete."""
        if args.should_save:
            folder = run_folder(args) / checkpoint_name(state.global_step)
            save_ledger(folder, self.trainer.ledger, self.trainer.mechanism)
        self.on_train_end(args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the record of all updates so far."""
        if state.is_world_process_zero:
            write_record(run_folder(args), self.trainer.mechanism, self.trainer.ledger)


class SaveBelow(TrainerCallback):
    """Callback that saves a checkpoint when the validation loss first falls below a threshold.

    The validation loss selects checkpoints, so the validation split must not contain protected data.
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
        """Request a checkpoint if this loss is the first below a threshold, counting those before a resume."""
        loss = (metrics or {})["eval_loss"]
        rows = [row for row in state.log_history if "eval_loss" in row and row["step"] < state.global_step]
        lowest = min((row["eval_loss"] for row in rows), default=math.inf)
        if any(loss < threshold <= lowest for threshold in self.thresholds):
            control.should_save = True
