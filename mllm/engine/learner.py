"""What is trained: one module whose forward holds everything that has a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mllm.objectives.base import Objective
from mllm.structures import Context, Model, Outputs

Reduction = Literal["items", "samples"]


class Learner(nn.Module):
    """A student, the objectives that it answers to, and perhaps a frozen teacher.

    With reduction "items" each term is its sum divided by its count over the whole logical batch on all processes;
    with "samples" (privacy) it is the mean over samples of each sample's own mean, unless counts are given, as for the
    mean of a split. `state_dict` speaks only of what is trained: adapters, heads, projectors.
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
        """How far the training is, in [0, 1]; the trainer sets it."""
        if teacher is not None:
            teacher.requires_grad_(False).eval()
        self.register_state_dict_post_hook(_keep_trained)
        self.register_load_state_dict_post_hook(_expect_trained)

    def counts(self, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Supervised items of a batch under each objective's name."""
        return {name: objective.count(targets).sum() for name, objective in self.named_objectives()}

    def forward(
        self,
        student: dict[str, Tensor],
        targets: dict[str, Tensor],
        teacher: dict[str, Tensor] | None = None,
        counts: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch, and each objective's unweighted share of it, detached.

        `counts` are those of the whole logical batch; without them the batch stands for itself.
        """
        outputs = self.student(**student)
        context = Context(targets, outputs, self.taught(teacher), self.progress)
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

    def taught(self, teacher: dict[str, Tensor] | None) -> Outputs | None:
        """What the teacher gives for a batch, without a gradient; None where nobody teaches."""
        if self.teacher is None or teacher is None:
            return None
        with torch.no_grad():
            outputs = self.teacher(**teacher)
        assert isinstance(outputs, Outputs)
        return outputs

    def train(self, mode: bool = True) -> Learner:
        """Training mode for all but the teacher, which stays as it is used."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def named_objectives(self) -> list[tuple[str, Objective]]:
        """The objectives under the names that the config gave them."""
        return [(name, module) for name, module in self.objectives.items() if isinstance(module, Objective)]


def _keep_trained(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Leaves only what is trained in a state dict."""
    trained = {prefix + name for name, parameter in module.named_parameters() if parameter.requires_grad}
    for name in [name for name in state if name.startswith(prefix) and name not in trained]:
        del state[name]


def _expect_trained(module: nn.Module, keys: Any) -> None:
    """Does not miss what is frozen when a state dict is loaded."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    keys.missing_keys[:] = [name for name in keys.missing_keys if name in trained]
