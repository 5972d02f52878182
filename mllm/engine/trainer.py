"""Training loop over logical batches, on the Trainer of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments

from mllm.engine.checkpoints import begin_checkpoint
from mllm.engine.finite_check import FiniteCheck
from mllm.engine.learner import Learner
from mllm.engine.mean_loss import check_failures, mean_losses
from mllm.engine.meter import Meter
from mllm.engine.micro_batches import MicroBatches, release_memory
from mllm.engine.padding_check import padded_pair
from mllm.engine.preflight import preflight
from mllm.engine.run_log import run_folder
from mllm.engine.sharded_trainer import ShardedTrainer
from mllm.errors import advise_on_memory, is_out_of_memory
from mllm.models.adapters.trainable import count_trainable
from mllm.private_messages import error_of, worker_setup
from mllm.run_files import checkpoint_name
from mllm.structures import Batch, Encoded, Failure, LogicalBatch
from mllm.supervision import unsupervised

IDLE = "idle_update"
"""Key of the entries of the history for steps without a supervised item."""


class MultimodalTrainer(ShardedTrainer):
    """Trainer of a Learner.

    One item of the data loader is the logical batch of one update: the sampler draws it, the collator splits it into
    pieces, and `training_step` runs them. `gradient_accumulation_steps` is 1, so resuming skips whole updates.

    Args:
        learner: Student, objectives and teacher.
        args: Arguments of transformers, with accumulation 1.
        train_dataset: Encoded samples of the training split.
        train_sampler: Sampler of the logical batches of this process.
        collate: Function from encoded samples to a `LogicalBatch`.
        eval_dataset: Encoded samples of the validation split.
        eval_sampler: Sampler of the validation split, in order.
        meter: Counters for the log.
        skip_failures: Skip rows that cannot be used. False: the first one stops the training.
        memory_advice: Sentence that is added to an out-of-memory error.
        micro_batches: Collator that divides updates into smaller micro-batches when memory runs out; None: an
            out-of-memory error ends the training.
        autocasts: Run the learner under autocast in bf16 itself, because the engine does not.
        callbacks: Callbacks, in order. A `FiniteCheck` runs before them.
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
        micro_batches: MicroBatches | None = None,
        autocasts: bool = False,
        callbacks: list[Any] | None = None,
    ) -> None:
        assert args.gradient_accumulation_steps == 1, "accumulation happens inside a logical batch"
        self.autocasts = autocasts
        self.learner = learner
        """The model and its objectives, without the wrappers of accelerate."""
        self.parameters = count_trainable(learner.student)
        """Trainable parameters of each tower, counted before an engine divides them among processes."""
        self.meter = meter
        self.train_sampler, self.eval_sampler = train_sampler, eval_sampler
        self.skip_failures, self.memory_advice = skip_failures, memory_advice
        self.micro_batches = micro_batches
        self._items: Sequence[Encoded | Failure] = []
        """Samples of the last logical batch that `micro_batches` divided."""
        self.finite_check = FiniteCheck()
        self._is_idle = False
        """True if no process has a supervised item in the current logical batch."""
        super().__init__(
            model=learner,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=[self.finite_check, *(callbacks or [])],
        )

    def get_train_dataloader(self) -> DataLoader[LogicalBatch]:
        """Return the loader of the logical batches of this process."""
        return self._loader(self.train_dataset, self.train_sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[LogicalBatch]:
        """Return the loader of the validation split, in order."""
        return self._loader(self.eval_dataset if eval_dataset is None else eval_dataset, self.eval_sampler)

    def _loader(self, dataset: Any, sampler: Any) -> DataLoader[Any]:
        """Return a loader of logical batches, or of lists of samples that `_collated` divides in this process."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self._collate,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            persistent_workers=workers > 0 and self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers > 0 else None,
            worker_init_fn=worker_setup(),
            # Seeds the workers. Without it, a loader draws their seed from the generator that dropout uses, and an
            # evaluation would change the updates after it.
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def first_batch(self) -> LogicalBatch:
        """Return the first batch with a usable row of this process, or else of another one in the first epoch.

        Raises:
            DataError: No process has a usable row in that epoch.
        """
        return self._first_update()[1]

    def _first_update(self) -> tuple[Sequence[Encoded | Failure], LogicalBatch]:
        for update in self.first_updates():
            return update
        raise error_of(f"no row of the training split could be used; one of them: {next(iter(self.meter.failures))}")

    def first_batches(self) -> Iterator[LogicalBatch]:
        """Yield the batches of `first_updates`."""
        return (batch for _, batch in self.first_updates())

    def first_updates(self) -> Iterator[tuple[Sequence[Encoded | Failure], LogicalBatch]]:
        """Yield samples and batch of each update of the first epoch that has a usable row, encoded one at a time.

        Those of this process come first, then those of the other processes. So the checks before the first update fail
        on all processes or on none.
        """
        dataset = cast(Any, self.train_dataset)
        for items in ([dataset[draw] for draw in draws] for share in self._shares() for draws in share):
            for batch in self._checked([self._collate(items)], "train"):
                if batch.pieces:
                    yield items, batch

    def _shares(self) -> Iterator[Any]:
        """Yield the sampler of this process, and then those of the other processes."""
        for offset in range(self.train_sampler.world):
            sampler = copy(self.train_sampler)
            sampler.rank = (sampler.rank + offset) % sampler.world
            yield sampler

    def preflight(self) -> LogicalBatch:
        """Check on the first batch that all trainable tensors receive gradients, and return that batch."""
        self.learner.to(self.args.device)  # Trainer leaves this to a sharding engine, which starts with the training
        while True:
            items, batch = self._first_update()
            collate: Any = self.data_collator if self.micro_batches is None else self.micro_batches
            updates = chain([items], (items for items, _ in islice(self.first_updates(), 1, 2)))
            try:
                pair = padded_pair(collate, updates) if self.learner.student.generates_text else None
                preflight(self.learner, batch, self.accelerator, self.first_batches(), pair, self.autocast)
                return batch
            except Exception as error:
                if self._halved(error) is None:
                    raise
            self._release()

    @property
    def _collate(self) -> Any:
        """Return the function of the samples of an update in a worker: the collator, or `list` for `micro_batches`."""
        return self.data_collator if self.micro_batches is None else list

    def _collated(self, loaded: Any, update: int | None = None) -> LogicalBatch:
        """Return a logical batch of the loader. With `micro_batches` its samples are divided here, by this update."""
        if self.micro_batches is None:
            return cast(LogicalBatch, loaded)
        self._items = loaded
        return self.micro_batches(loaded, update)

    def _halved(self, error: Exception) -> LogicalBatch | None:
        """Return the last logical batch in smaller pieces after an out-of-memory error; None if that is impossible."""
        if self.micro_batches is None or not is_out_of_memory(error):
            return None
        return self.micro_batches.halve(self._items, self.state.global_step)

    def _release(self) -> None:
        """Drop the gradients and the memory of a pass that failed. Call it when its exception was handled."""
        self.learner.zero_grad(set_to_none=True)
        release_memory()

    @cached_property
    def _idle_piece(self) -> Batch:
        """Piece without supervision, for a process that has no usable row while others have some."""
        piece = self.first_batch().pieces[-1]
        return replace(piece, targets=unsupervised(piece.targets))

    def get_batch_samples(
        self, epoch_iterator: Iterator[LogicalBatch], num_batches: int, device: torch.device
    ) -> tuple[list[LogicalBatch], Any]:
        """Return the next logical batch and the numbers of its supervised items on all processes, by objective."""
        batches: list[LogicalBatch] = []
        counts = None
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            # A finished run was resumed within an epoch. Trainer checks for the end only after an update.
            self.control.should_training_stop = True
            return batches, counts
        for loaded in epoch_iterator:
            batch = self._collated(loaded, self.state.global_step)
            check_failures(batch, self.skip_failures)
            self.meter.count(batch)
            counts = self._global_counts(batch, device)
            batches.append(batch)
            break
        self.learner.progress = self.state.global_step / max(1, self.state.max_steps)
        return batches, counts

    @property
    def updates(self) -> int:
        """Return the number of updates of the weights since the start of the run."""
        return self.state.global_step - self.idle_steps

    @property
    def idle_steps(self) -> int:
        """Return the number of steps since the start of the run that had no supervised item, so they made no update.

        They count in the schedule, because step N always reads the N-th logical batch: so a resumed run and any number
        of processes continue with the same data.
        """
        return sum(IDLE in row for row in self.state.log_history)

    def _global_counts(self, batch: LogicalBatch, device: torch.device) -> dict[str, Tensor]:
        """Return the number of supervised items of a logical batch on all processes, by objective."""
        pieces = [self.learner.counts(piece.targets) for piece in batch.pieces]
        names = [name for name, _ in self.learner.named_objectives()]
        local = torch.tensor([sum(int(piece[name]) for piece in pieces) for name in names])
        counts = self.accelerator.reduce(local.to(device, non_blocking=True), "sum")
        # All processes decide alike. Only with several of them does this wait for the device.
        self._is_idle = not (local if self.accelerator.num_processes == 1 else counts).any()
        return dict(zip(names, counts.unbind(), strict=True))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,  # type: ignore[override]
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the share of one piece in the loss, times the number of processes, because DDP averages gradients."""
        outputs = model(
            student=inputs.student, targets=inputs.targets, teacher=inputs.teacher, counts=num_items_in_batch
        )
        self.meter.add({name: term for name, term in outputs.items() if name != "loss"})
        loss = outputs["loss"] * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: LogicalBatch, num_items_in_batch: Any = None
    ) -> Tensor:
        """Run forward and backward over the pieces of a logical batch and return its loss, [].

        Gradients of all processes are reduced at the last piece. If no process has a supervised item, nothing is
        computed and the weights do not change.
        """
        model.train()
        if self._is_idle:
            self.meter.step(idle=True)
            # Checkpoints keep the history, so a resumed run has its idle updates.
            self.state.log_history.append({"step": self.state.global_step + 1, IDLE: 1})
            return torch.zeros((), device=self.args.device)
        with advise_on_memory(self.memory_advice, f" at step {self.state.global_step + 1}"):
            total = self._run(model, inputs, num_items_in_batch)
        self.finite_check.loss = total
        self.meter.step(total)
        return total

    def _run(self, model: nn.Module, batch: LogicalBatch, counts: Any) -> Tensor:
        """Run the pieces of a logical batch and return their loss, []; with `micro_batches`, again if memory runs out.

        The second pass starts with the random states of the first, without its gradients and terms.
        """
        if self.micro_batches is None:
            return self._run_pieces(model, batch.pieces or [self._idle_piece], counts)
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        while True:
            terms = dict(self.meter.terms)
            states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
            try:
                return self._run_pieces(model, batch.pieces, counts)
            except Exception as error:
                smaller = self._halved(error)
                if smaller is None:
                    raise
            batch, self.meter.terms = smaller, terms
            self._release()
            torch.set_rng_state(states[0])
            for device, state in zip(devices, states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)

    def _run_pieces(self, model: nn.Module, pieces: list[Batch], counts: Any) -> Tensor:
        """Run forward and backward over the pieces and return their loss, []."""
        total = torch.zeros((), device=self.args.device)
        pieces = self.equal_passes(pieces, lambda: self._idle_piece)
        for number, piece in enumerate(pieces, start=1):
            is_last = number == len(pieces)
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            # A sharding engine divides the gradients of each piece, so that no process holds all of them.
            with nullcontext() if is_last or self.is_sharded else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(
                        model, piece.to(self.args.device, non_blocking=True), num_items_in_batch=counts
                    )
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the mean loss of the validation split over its supervised items, and log it."""
        self.finite_check.wait(self.args)
        with self.meter.paused():
            loader = self._checked(self.get_eval_dataloader(eval_dataset), "validation")
            batches = (self.equal_passes(batch.pieces, lambda: self._idle_piece) for batch in loader)
            means = mean_losses(self.model_wrapped, self.learner, batches, self.accelerator)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
            self.log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _checked(self, batches: Iterable[LogicalBatch], split: str) -> Iterator[LogicalBatch]:
        """Yield the batches of a split. Record their failures, or raise `DataError` for the first."""
        for loaded in batches:
            batch = self._collated(loaded)
            check_failures(batch, self.skip_failures)
            self.meter.skip(split, batch.failures)
            yield batch

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, marked as incomplete from the start; the callback `Checkpoints` marks it as complete."""
        self.finite_check.wait(self.args)
        if self.args.should_save:
            begin_checkpoint(run_folder(self.args) / checkpoint_name(self.state.global_step))
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def floating_point_ops(self, inputs: LogicalBatch) -> int:  # type: ignore[override]
        """Return 0, because operations are not counted."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms of the objectives, speed, padding and peak memory to a training entry, and log it.

        Speed and the final summary cover the time since the start or the resume. Idle updates have no loss: they do not
        count in its mean, and an entry about idle updates only is dropped.
        """
        self.finite_check.wait(self.args)
        if "loss" in logs:
            steps, supervised = self.meter.steps, self.meter.steps - self.meter.idle
            if steps and not supervised:
                self.meter.steps = self.meter.idle = 0  # Trainer resets its count, too
                return
            logs["loss"] *= max(1, steps) / max(1, supervised)
            logs.update(self.meter.read(self.accelerator))
            remaining = self.state.max_steps - self.state.global_step
            logs["seconds_left"] = logs["seconds"] / max(1, self.meter.total_steps) * max(0, remaining)
        if "train_runtime" in logs:
            # The values of Trainer count scheduled samples and include the time of evaluations.
            for name in ("train_loss", "train_samples_per_second", "train_steps_per_second"):
                logs.pop(name, None)
            logs.update(self.meter.summary(self.accelerator, self.state.global_step))
        super().log(logs, start_time)
