"""Trainer for engines that divide gradients and weights among processes: FSDP2 and DeepSpeed."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer import SCHEDULER_NAME

from mllm.engine.learner import Learner
from mllm.engine.rates import options_of, rates_of_config
from mllm.engine.whole_modules import PlainForm
from mllm.errors import DataError
from mllm.models.trainable_model import EXTRA_PARTS
from mllm.structures import Batch


class ShardedTrainer(Trainer):
    """Trainer whose model has its plain form before and after the training, on every engine."""

    learner: Learner
    autocasts: bool
    deepspeed: Any
    optimizer: Any
    lr_scheduler: Any
    _options: list[dict[str, Any]]
    """Options of the optimizer by the config."""

    @property
    def is_sharded(self) -> bool:
        """Return True if the engine divides gradients or weights, so that all processes must run the same passes."""
        return self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)

    def train(
        self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: list[str] | None = None
    ) -> Any:
        """Train. Afterwards the model has its plain form, with the trained weights, on every process."""
        with self.sharding():
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the learner runs."""
        if self.autocasts:
            return torch.autocast(self.args.device.type, torch.bfloat16)
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    @contextmanager
    def sharding(self) -> Iterator[None]:
        """Let the engine divide the learner in the block, and gather it afterwards.

        The learner stays divided if the block raises an error.
        """
        plain = PlainForm(self.learner) if self.is_sharded else None
        if self.autocasts:
            context = torch.autocast(self.args.device.type, torch.bfloat16)
            vars(self.learner)["forward"] = context(self.learner.forward)
        yield
        if plain is not None:
            self._release_optimizer()
            plain.restore()
            self.model = self.model_wrapped = self.learner

    def _release_optimizer(self) -> None:
        """Free the optimizer and the engine before the weights are gathered."""
        if self.deepspeed is not None:
            self.deepspeed.destroy()
        self.optimizer = self.lr_scheduler = self.deepspeed = None
        handler: Any = self.callback_handler
        handler.model = handler.optimizer = handler.lr_scheduler = None
        self.accelerator.free_memory()
        unset_hf_deepspeed_config()  # transformers would generate as if the weights were still divided

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """Wrap the learner, create optimizer and schedule, and let ZeRO-3 gather what is read outside of its module."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.divides_weights_by_deepspeed:
            from deepspeed.runtime.zero.partition_parameters import register_external_parameter

            for parameter in read_by_objectives(self.learner):
                register_external_parameter(self.learner, parameter)
        return prepared

    @property
    def divides_weights_by_deepspeed(self) -> bool:
        """Return True for ZeRO-3."""
        state: Any = self.accelerator.state
        return self.deepspeed is not None and state.deepspeed_plugin.zero_stage == 3

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model of a checkpoint. Those of a sharding engine are written with the optimizer."""
        if not self.is_sharded:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save both, and the trained tensors of a sharding engine."""
        if self.deepspeed is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        self.deepspeed.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the schedule, and keep the options of the optimizer before a checkpoint replaces them."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        self._options = options_of(self.optimizer)
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both states from a checkpoint, with the learning rates and the options of the config."""
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        with rates_of_config(self.optimizer, self.lr_scheduler, self._options):
            if self.is_fsdp_enabled and is_stateless(self.optimizer):  # torch cannot load an empty state under FSDP
                self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
            else:
                super()._load_optimizer_and_scheduler(checkpoint)

    def equal_passes(self, pieces: list[Batch], idle: Callable[[], Batch]) -> list[Batch]:
        """Return `pieces`, filled with the piece `idle()` to the number of pieces of the process that has most.

        Forward and backward passes of a sharding engine exchange weights and gradients, so all processes run the same
        passes. On other engines `pieces` are returned as they are. All processes must call it.

        Raises:
            DataError: The passes of the processes differ in the modules that they use, as with and without images.
        """
        if not self.is_sharded:
            return pieces
        longest = int(self._gather(len(pieces)).max())
        pieces = pieces + [idle() for _ in range(longest - len(pieces))]
        if self._needs_equal_inputs:
            inputs = " ".join(",".join(sorted(piece.student)) for piece in pieces)
            digests = self._gather(zlib.crc32(inputs.encode()))
            if (digests != digests[0]).any():
                raise DataError.without_values(
                    "the batches of the processes have different inputs, such as with and without images, but this "
                    "engine needs equal ones: use DDP, or rows of which all have images or none"
                )
        return pieces

    @functools.cached_property
    def _needs_equal_inputs(self) -> bool:
        """True if a module that not all batches use exchanges its weights or its gradients."""
        return self.divides_weights_by_deepspeed or trains_images(self.learner)

    def _gather(self, value: int) -> Tensor:
        """Return the values of all processes, [P]."""
        return self.accelerator.gather(torch.tensor([value], device=self.args.device))


def is_stateless(optimizer: Any) -> bool:
    """Return True for an optimizer without states: SGD without momentum."""
    inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    return isinstance(inner, torch.optim.SGD) and not any(group["momentum"] for group in inner.param_groups)


def trains_images(learner: Learner) -> bool:
    """Return True if a part trains that has no gradient in a batch without images."""
    parts = (learner.student.towers.keys() | {"fusion"}) - {"language"}
    return any(map(learner.student.trains, parts))


def read_by_objectives(learner: Learner) -> list[nn.Parameter]:
    """Return the parameters that are read outside of the forward pass of their module: heads and vocabulary."""
    student = learner.student
    parameters = {id(p): p for name, p in student.named_parameters() if student.tower_of(name) in EXTRA_PARTS}
    if student.generates_text:
        parameters |= {id(p): p for p in student.pretrained.get_output_embeddings().parameters()}
    return list(parameters.values())
