"""The training loop: transformers' Trainer over a Learner, with logical batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, cast

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments

from mllm.engine.callbacks import not_finite
from mllm.engine.evaluation import check_failures, mean_losses
from mllm.engine.learner import Learner
from mllm.engine.meter import Meter
from mllm.errors import TrainingError
from mllm.structures import Batch, Encoded, LogicalBatch


class MultimodalTrainer(Trainer):
    """Trains a Learner on logical batches, each loaded whole and run piece by piece.

    One loader item is one update: the sampler deals it, the collator cuts it, and `training_step` runs the pieces.
    Trainer itself is told of an accumulation of 1, so that skipping and resuming count updates.
    """

    def __init__(
        self,
        learner: Learner,
        args: TrainingArguments,
        *,
        train_dataset: Dataset[Encoded],
        train_sampler: Any,
        collate: Any,
        eval_dataset: Dataset[Encoded] | None = None,
        eval_sampler: Any = None,
        meter: Meter,
        skip_failures: bool = False,
        memory_advice: str = "",
        callbacks: list[Any] | None = None,
    ) -> None:
        assert args.gradient_accumulation_steps == 1, "accumulation happens inside a logical batch"
        self.meter = meter
        self.train_sampler, self.eval_sampler = train_sampler, eval_sampler
        self.skip_failures, self.memory_advice = skip_failures, memory_advice
        super().__init__(
            model=learner,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )

    def get_train_dataloader(self) -> DataLoader[LogicalBatch]:
        """The loader of logical batches; the sampler already deals one process's share."""
        return self._loader(self.train_dataset, self.train_sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[LogicalBatch]:
        """The loader of the validation split, in order."""
        return self._loader(self.eval_dataset if eval_dataset is None else eval_dataset, self.eval_sampler)

    def _loader(self, dataset: Any, sampler: Any) -> DataLoader[LogicalBatch]:
        workers = self.args.dataloader_num_workers
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            persistent_workers=workers > 0 and self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers > 0 else None,
        )

    def first_batch(self) -> LogicalBatch:
        """The first update's batch of the first epoch, encoded here and now."""
        draws = next(iter(self.train_sampler))
        collate, dataset = cast(Any, self.data_collator), cast(Any, self.train_dataset)
        return cast(LogicalBatch, collate([dataset[draw] for draw in draws]))

    def get_batch_samples(
        self, epoch_iterator: Iterator[LogicalBatch], num_batches: int, device: torch.device
    ) -> tuple[list[LogicalBatch], Any]:
        """The next logical batch, and its supervised items summed over all processes."""
        batches, counts = [], None
        for batch in epoch_iterator:
            check_failures(batch, self.skip_failures)
            self.meter.see(batch)
            counts = self._global_counts(batch, device)
            batches.append(batch)
            break
        self.learner.progress = self.state.global_step / max(1, self.state.max_steps)
        return batches, counts

    @property
    def learner(self) -> Learner:
        """The Learner, out of whatever wraps it."""
        learner = self.accelerator.unwrap_model(self.model)
        assert isinstance(learner, Learner)
        return learner

    def _global_counts(self, batch: LogicalBatch, device: torch.device) -> dict[str, Tensor]:
        """Supervised items of a logical batch on all processes, by objective."""
        pieces = [self.learner.counts(piece.targets) for piece in batch.pieces]
        return {
            name: self.accelerator.reduce(torch.stack([piece[name] for piece in pieces]).sum().to(device), "sum")
            for name in pieces[0]
        }

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,  # type: ignore[override]
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """One piece's share of the update's loss; multiplied by the processes, whose gradients DDP averages."""
        outputs = model(
            student=inputs.student, targets=inputs.targets, teacher=inputs.teacher, counts=num_items_in_batch
        )
        self.meter.add({name: term for name, term in outputs.items() if name != "loss"})
        loss = outputs["loss"] * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: LogicalBatch, num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward over the pieces of a logical batch; gradients meet other processes' on the last."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        try:
            for piece in inputs.pieces:
                is_last = piece is inputs.pieces[-1]
                self.accelerator.gradient_state._set_sync_gradients(is_last)
                deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
                with nullcontext() if is_last or deepspeed else self.accelerator.no_sync(model):
                    with self.compute_loss_context_manager():
                        loss = self.compute_loss(
                            model, piece.to(self.args.device, non_blocking=True), num_items_in_batch=num_items_in_batch
                        )
                    self.accelerator.backward(loss)
                total += loss.detach()
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise TrainingError(f"out of memory at step {self.state.global_step + 1}. {self.memory_advice}") from error
        if not torch.isfinite(total):
            raise not_finite(self.args, self.state, "loss", float(total))
        self.meter.step()
        return total

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The exact mean loss of the validation split, each supervised item counted once."""
        loader = self.get_eval_dataloader(eval_dataset)
        means = mean_losses(self.model_wrapped, self.learner, loader, self.accelerator, self.skip_failures)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: LogicalBatch) -> int:  # type: ignore[override]
        """Zero: operations are not counted, and an estimate would be no figure."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each objective's term, speed since start or resume, padding and peak memory to a training entry."""
        if "loss" in logs:
            logs.update(self.meter.read(self.accelerator))
        super().log(logs, start_time)
