"""How far measured numbers are from the true ones, and from each other."""

from __future__ import annotations

import torch
from torch import Tensor

from mllm.errors import ConfigError
from mllm.objectives.base import Objective
from mllm.registry import OBJECTIVES
from mllm.structures import Bundle, Context, Outputs


@OBJECTIVES.register_module()
class MeasureLoss(Objective):
    """The squared error of a RegressionHead's measures, each in standard deviations of the training split.

    An item is a known measure; an unknown one (NaN in the data) has neither loss nor gradient. In standard deviations
    a volume in mL does not swamp an ejection fraction in percent.
    """

    reads = "measures"

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Known measures of each sample, [B]."""
        if "measures_known" not in targets:
            raise ConfigError(
                "the objective MeasureLoss learns measures, and the model has no head for them: set "
                "model_args.part='vision' and model_args.heads = dict(measures=dict(type='RegressionHead'))"
            )
        return targets["measures_known"].sum(dim=1)

    def total(self, context: Context) -> Tensor:
        """The squared errors summed over each sample's known measures, [B], fp32."""
        found, std = read(context.student)
        known = context.targets["measures_known"]
        errors = torch.where(known, (found - context.targets["measures"]) / std, 0.0)
        return (errors**2).sum(dim=1)


@OBJECTIVES.register_module()
class VolumeConsistency(Objective):
    """How far a predicted ejection fraction is from that of the predicted volumes: |EF - 100 (EDV - ESV) / EDV|.

    In standard deviations of EF; `names` are what the head calls EF (%), EDV (mL) and ESV (mL), in any order of its
    own. An item is a sample. An EDV below 1 mL counts as 1 mL.
    """

    reads = "measures"

    def __init__(
        self, weight: float | dict[str, float] = 1.0, names: tuple[str, str, str] = ("EF", "EDV", "ESV")
    ) -> None:
        super().__init__(weight)
        if len(set(names)) != 3:
            raise ConfigError(f"VolumeConsistency.names are those of EF, EDV and ESV, not {list(names)}")
        self.names = tuple(names)
        self.places = (0, 1, 2)
        """Where they stand among the head's measures."""

    def connect(self, student: Bundle, teacher: Bundle | None) -> None:
        """Finds its three measures among the head's; raises `ConfigError` where one is not there."""
        found = list(student.encoder.measures)
        missing = [name for name in self.names if name not in found]
        if missing:
            raise ConfigError(
                f"VolumeConsistency compares {', '.join(self.names)}, and the model's head measures "
                f"{', '.join(found) or 'nothing'}: add {missing[0]} to model_args.heads.measures.measures, or remove "
                "the objective"
            )
        first, second, third = (found.index(name) for name in self.names)
        self.places = (first, second, third)

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """One for each sample with a known measure, [B]."""
        return targets["measures_known"].any(dim=1).long()

    def total(self, context: Context) -> Tensor:
        """The disagreement of each sample, [B], fp32."""
        found, std = read(context.student)
        fraction, diastolic, systolic = (found[:, place] for place in self.places)
        implied = 100 * (1 - systolic / diastolic.clamp_min(1.0))
        return (fraction - implied).abs() / std[self.places[0]] * self.count(context.targets)


def read(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """The measures [B, K] that a head found and the standard deviations [K] of the training split, fp32."""
    if "measures" not in outputs.heads:
        raise ConfigError("the model has no RegressionHead: set model_args.heads = dict(measures=...)")
    return outputs.heads["measures"].float(), outputs.heads["measures_std"].float()
