"""One update of a run on fake tensors: the builders, the learner, the trainer and the optimizer of the code itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mllm.engine.learner import Learner
from mllm.engine.trainer import MultimodalTrainer
from mllm.models.adapters.full import token_tables
from mllm.planning.fake import FakeExecution
from mllm.structures import Batch, LogicalBatch

GRADIENTS, OPTIMIZER, BACKWARD, LOSS = "gradients", "optimizer states", "backward pass", "loss and logits"
BATCH = "batch"
EMBEDDING, TRAINED, WEIGHTS, TEACHER = "embedding", "trained weights", "weights", "teacher"
ACTIVATIONS = "activations"


@dataclass(frozen=True)
class Update:
    """Memory and operations of one micro-batch and of the step of the optimizer after it."""

    peak: int
    """Largest number of bytes of live storages."""
    components: dict[str, int]
    """Bytes at the peak by component."""
    flops: int
    """Floating-point operations of a micro-batch."""
    trained: int
    """Number of trained parameters."""


def count_weights(learner: Learner, mode: FakeExecution) -> None:
    """Count all parameters and buffers of a learner by component and dtype."""
    student = learner.student
    tables = {id(table) for table in token_tables(student.pretrained)}
    for name, parameter in student.named_parameters():
        dtype = str(parameter.dtype).removeprefix("torch.")
        if parameter.requires_grad:
            component = TRAINED
        else:
            component = f"{EMBEDDING if id(parameter) in tables else WEIGHTS} in {dtype}"
        for tensor in tensors_of(parameter):
            mode.track(tensor, component)
        if student.tower_of(name) == "rows":
            mode.track(parameter, TRAINED)
    for _, buffer in student.named_buffers():
        mode.track(buffer, f"{WEIGHTS} in {str(buffer.dtype).removeprefix('torch.')}")
    for parameter in learner.objectives.parameters():
        mode.track(parameter, TRAINED)
    if learner.teacher is not None:
        for tensor in (*learner.teacher.parameters(), *learner.teacher.buffers()):  # type: ignore[union-attr]
            mode.track(tensor, TEACHER)


def tensors_of(parameter: Any) -> Iterator[Tensor]:
    """Yield a parameter, and the scales of a quantized one."""
    yield parameter
    values = vars(parameter)
    state = values.get("quant_state")
    if state is not None:
        yield from (state.absmax, state.code, state.state2.absmax, state.state2.code)
    if values.get("SCB") is not None:
        yield values["SCB"]


def run_update(trainer: MultimodalTrainer, piece: Batch, pieces: int, mode: FakeExecution) -> Update:
    """Run the last micro-batch of an update and the step of the optimizer, and return memory and operations.

    Args:
        trainer: The trainer.
        piece: The micro-batch.
        pieces: Number of micro-batches of an update. With several, the gradients exist before the last one.
        mode: The context, which is active.
    """
    learner = trainer.learner
    optimizer: Any = trainer.create_optimizer()
    if "is_paged" in vars(optimizer):
        optimizer.is_paged = False  # paged states are in memory that the driver manages; they have the same size
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    with mode.scope(OPTIMIZER):
        fill_states(optimizer, trained)
    for item in (*piece.student.values(), *piece.targets.values(), *(piece.teacher or {}).values()):
        if isinstance(item, Tensor):  # not the layout of a row
            mode.track(item, BATCH)
    with ExitStack() as stack:
        for parameter in trained:
            if pieces > 1:
                parameter.grad = torch.empty_like(parameter)
                mode.track(parameter.grad, GRADIENTS)
            handle = parameter.register_post_accumulate_grad_hook(lambda own: mode.track(own.grad, GRADIENTS))
            stack.callback(handle.remove)
        stack.enter_context(scopes_of(learner, mode))
        mode.reset_peak()
        batch = LogicalBatch([piece], piece.samples, 1, 1)
        counts = trainer._global_counts(batch, trainer.args.device)
        with mode.scope(BACKWARD):
            trainer.training_step(learner, batch, counts)
        flops = mode.flops
        with mode.scope(OPTIMIZER):
            if trainer.args.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(trained, trainer.args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
    components = {key: size for key, size in mode.at_peak.items() if size}
    return Update(mode.peak, components, flops, sum(parameter.numel() for parameter in trained))


def fill_states(optimizer: Any, trained: Sequence[nn.Parameter]) -> None:
    """Make the first update of the optimizer, which creates its states."""
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


@contextmanager
def scopes_of(learner: Learner, mode: FakeExecution) -> Iterator[None]:
    """Count the tensors that the forward pass of a tower creates as its activations."""
    student: Any = learner.student
    paths = dict(student.pretrained.named_modules())
    modules: list[tuple[str, nn.Module]] = [(LOSS, learner), (f"{ACTIVATIONS}: language", student)]
    modules += [
        (f"{ACTIVATIONS}: {tower}", paths[prefix]) for tower, prefix in student.towers.items() if prefix in paths
    ]
    modules += [(f"{ACTIVATIONS}: heads", head) for head in student.heads.values()]
    if isinstance(learner.teacher, nn.Module):
        modules.append((f"{ACTIVATIONS}: teacher", learner.teacher))
    handles = []
    for component, module in modules:
        handles.append(module.register_forward_pre_hook(lambda *_, name=component: mode.enter(name)))
        handles.append(module.register_forward_hook(lambda *_: mode.leave(), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_kind(components: dict[str, int]) -> Counter[str]:
    """Return the bytes at a peak by kind, of which shards and other devices divide some."""
    kinds: Counter[str] = Counter()
    for component, size in components.items():
        kind = component.partition(" in ")[0].partition(":")[0]
        kinds[WEIGHTS if kind == EMBEDDING else kind] += size
    return kinds
