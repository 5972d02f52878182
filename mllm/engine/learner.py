"""Module that combines student, teacher and objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mllm.objectives.base import Objective
from mllm.protocols import Model
from mllm.structures import Context, Outputs

Reduction = Literal["items", "samples"]


class Learner(nn.Module):
    """Student, objectives and an optional frozen teacher. Its forward pass computes the loss.

    `state_dict` contains only trained tensors: adapters, heads, projectors.

    Args:
        student: The model to train.
        objectives: Name -> objective.
        teacher: Model whose outputs the objectives read. It is frozen.
        reduction: "items": each term is its sum divided by its count over the logical batch on all processes.
            "samples", for privacy: each term is the mean over samples of the mean of each sample, unless counts are
            passed to the forward pass.
    """

    def __init__(
        self,
        student: Model,
        objectives: Mapping[str, Objective],
        teacher: nn.Module | Model | None = None,
        reduction: Reduction = "items",
    ) -> None:
        super().__init__()
        self.student: Model = student
        self.objectives = nn.ModuleDict(objectives)
        self.teacher: nn.Module | Model | None = teacher
        self.reduction = reduction
        self.progress = 0.0
        """Progress of the training, in [0, 1]; the trainer sets it."""
        if teacher is not None:
            teacher.requires_grad_(False).eval()
        self.register_state_dict_post_hook(_keep_trained)
        self.register_load_state_dict_post_hook(_expect_trained)

    @property
    def _no_split_modules(self) -> list[str]:
        """Return the classes of the layers that FSDP gathers one at a time; accelerate reads this attribute."""
        return layer_classes(self.student)

    def counts(self, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the number of supervised items of a batch for each objective, []."""
        return {name: objective.count(targets).sum() for name, objective in self.named_objectives()}

    def forward(
        self,
        student: dict[str, Tensor],
        targets: dict[str, Tensor],
        teacher: dict[str, Tensor] | None = None,
        counts: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            student: Inputs of the student.
            targets: Targets of the objectives.
            teacher: Inputs of the teacher.
            counts: Supervised items of the logical batch by objective. None: those of this batch.

        Returns:
            `loss` and, detached, the unweighted term of each objective, all [].
        """
        outputs = self.student(**student)
        context = Context(targets, outputs, self.run_teacher(teacher), self.progress)
        if counts is None and self.reduction == "items":
            counts = self.counts(targets)
        loss, terms = outputs.hidden_BLD.new_zeros(()).float(), {}
        for name, objective in self.named_objectives():
            total_B = objective.total(context)
            if counts is not None:
                term = total_B.sum() / counts[name].clamp_min(1)
            else:
                term = (total_B / objective.count(targets).clamp_min(1)).mean()
            loss = loss + objective.weight(self.progress) * term
            terms[name] = term.detach()
        return {"loss": loss, **terms}

    def run_teacher(self, teacher: dict[str, Tensor] | None) -> Outputs | None:
        """Return the outputs of the teacher for its inputs, without gradient; None without a teacher."""
        if self.teacher is None or teacher is None:
            return None
        with torch.no_grad():
            outputs = self.teacher(**teacher)
        assert isinstance(outputs, Outputs)
        return outputs

    def train(self, mode: bool = True) -> Learner:
        """Set the training mode of all modules except the teacher, which stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def named_objectives(self) -> list[tuple[str, Objective]]:
        """Return the objectives with their names in the config."""
        return [(name, module) for name, module in self.objectives.items() if isinstance(module, Objective)]


def layer_classes(model: Model) -> list[str]:
    """Return the names of the classes of the layers that every batch uses: those of the language model if there is one.

    A batch without images does not use the vision tower, so its weights cannot be gathered layer by layer: processes
    with and without images would wait for each other.
    """
    tower = "language" if model.generates_text else "vision"
    inside = f"{model.towers[tower]}." if tower in model.towers else ""
    classes = set(model.pretrained._no_split_modules or ())
    layers = (type(module).__name__ for name, module in model.named_modules() if inside in f"{name}.")
    return [name for name in dict.fromkeys(layers) if name in classes]


def _keep_trained(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Remove frozen tensors from a state dict."""
    trained = {prefix + name for name, parameter in module.named_parameters() if parameter.requires_grad}
    for name in [name for name in state if name.startswith(prefix) and name not in trained]:
        del state[name]


def _expect_trained(module: nn.Module, keys: Any) -> None:
    """Accept missing frozen tensors when a state dict is loaded."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    keys.missing_keys[:] = [name for name in keys.missing_keys if name in trained]
