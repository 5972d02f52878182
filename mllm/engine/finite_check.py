"""Check of losses and gradients for NaN and infinity without waiting for the device.

The flags of an update are computed on the device, just before the optimizer step, and copied to the host without
waiting. Later updates read those copies that have arrived. Until then nothing non-finite reaches the weights: the flags
are also accumulated in one tensor, `failed`, and the optimizer step reads it on the device. Fused Adam and AdamW skip
the step, including the decay of weights and the counting of steps, if their attribute `found_inf` is 1; gradient
scalers use the same attribute. `failed` stays 1, so the updates after a failed one are skipped, too, and weights and
optimizer state are those of the last good update when the error is raised.

Other optimizers, gradient scalers, FSDP and DeepSpeed have no such attribute: there the flags are awaited before the
step. A logged, saved or evaluated update and the end of an epoch wait for all flags, so that no log, checkpoint or
metric contains a failed update. On a CPU a copy is complete when it returns, and the error is raised before the step.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mllm.engine.checkpoints import newest_checkpoint
from mllm.engine.run_log import run_folder
from mllm.errors import TrainingError


class HostCopy:
    """Copy of a small tensor in host memory that may not have arrived yet."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._values = tensor.cpu()

    def is_ready(self) -> bool:
        """Return True if the values have arrived."""
        return self._event is None or self._event.query()

    def read(self) -> list[float]:
        """Wait for the values and return them."""
        if self._event is not None:
            self._event.synchronize()
        values: list[float] = self._values.tolist()
        return values


class FiniteCheck(TrainerCallback):
    """Callback that stops the training at the first non-finite loss or gradient. First callback of a trainer."""

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        """Loss of the current update, []; the trainer sets it. None: nothing was computed."""
        self._failed: Tensor | None = None
        """1.0 after a non-finite loss or gradient, else 0.0, []."""
        self._pending: deque[tuple[int, HostCopy]] = deque()
        """Number of an update, and its loss and its flag for finite gradients (0 or 1), [2]."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the flags of an earlier training with this trainer."""
        self.loss = self._failed = None
        self._pending.clear()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Record the flags of an update and make its optimizer step safe.

        Raises:
            TrainingError: The loss or a gradient of this update or of an earlier one is NaN or infinite.
        """
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if self.loss is not None:
            self._record(state.global_step + 1, self.loss, _all_finite(gradients))
            self.loss = None
        if self._failed is not None and skips_non_finite_steps(optimizer):
            optimizer.optimizer.found_inf = self._failed
            self._raise_arrived(args)
        else:
            self.wait(args)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the flags of all updates."""
        self.wait(args)

    def wait(self, args: TrainingArguments) -> None:
        """Wait for the flags of all updates. Raise `TrainingError` for the first that is not finite."""
        while self._pending:
            self._raise_first(args)

    def _record(self, step: int, loss: Tensor, gradients_finite: Tensor | None) -> None:
        """Compute the flags of an update on the device and start to copy them."""
        finite = loss.isfinite()
        gradients_finite = torch.ones_like(finite) if gradients_finite is None else gradients_finite.to(loss.device)
        failed = 1 - (finite & gradients_finite).float()
        self._failed = failed if self._failed is None else torch.maximum(self._failed, failed)
        self._pending.append((step, HostCopy(torch.stack([loss.float(), gradients_finite.float()]))))

    def _raise_arrived(self, args: TrainingArguments) -> None:
        while self._pending and self._pending[0][1].is_ready():
            self._raise_first(args)

    def _raise_first(self, args: TrainingArguments) -> None:
        step, copy = self._pending.popleft()
        loss, gradients_finite = copy.read()
        if not math.isfinite(loss):
            raise non_finite_error(args, step, "loss", loss)
        if not gradients_finite:
            raise non_finite_error(args, step, "gradient", float("nan"))


def skips_non_finite_steps(optimizer: Any) -> bool:
    """Return True if the optimizer skips a step on the device when its attribute `found_inf` is 1."""
    if not isinstance(optimizer, AcceleratedOptimizer) or optimizer.scaler is not None:
        return False
    if not isinstance(optimizer.optimizer, torch.optim.Adam | torch.optim.AdamW):
        return False
    groups = optimizer.optimizer.param_groups
    is_sharded = any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"])
    return all(group["fused"] for group in groups) and not is_sharded


def non_finite_error(args: TrainingArguments, step: int, name: str, value: float) -> TrainingError:
    """Return the error for a loss or gradient of update `step` that is NaN or infinite."""
    checkpoint = newest_checkpoint(run_folder(args))
    return TrainingError(
        f"the {name} is {value} at step {step}; "
        + (f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint has been written yet")
        + f"; lower learning_rate (now {args.learning_rate:g}) or max_grad_norm (now {args.max_grad_norm:g}), "
        "or train in bf16 or fp32"
    )


def _all_finite(gradients: list[Tensor]) -> Tensor | None:
    """Return a flag on the device, []: True if all values are finite. None without gradients.

    FSDP divides gradients among processes. Each one reduces its own parts, and one exchange combines the flags:
    operations on a `DTensor` would exchange one flag per gradient.
    """
    if not gradients:
        return None
    parts = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    flag = torch.stack([part.isfinite().all() for part in parts]).all()
    if any(isinstance(gradient, DTensor) for gradient in gradients):
        flag = flag.float()
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return flag.bool()
