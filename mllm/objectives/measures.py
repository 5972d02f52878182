"""Losses of predicted measures."""

from __future__ import annotations

import torch
from torch import Tensor

from mllm.errors import ConfigError
from mllm.objectives.base import Objective
from mllm.protocols import Bundle
from mllm.registry import OBJECTIVES
from mllm.structures import Context, Outputs


@OBJECTIVES.register_module()
class MeasureLoss(Objective):
    """Squared error of the measures of a RegressionHead, in standard deviations of the training split.

    An item is a known measure. An unknown measure (NaN in the data) has no loss and no gradient. The scaling gives a
    volume in mL and an ejection fraction in percent similar weight.
    """

    reads = "measures"

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Return the number of known measures of each sample, [B]."""
        if "measures_known" not in targets:
            raise ConfigError(
                "the objective MeasureLoss needs a head for measures: set "
                "model_args.part='vision' and model_args.heads = dict(measures=dict(type='RegressionHead'))"
            )
        return targets["measures_known"].sum(dim=1)

    def total(self, context: Context) -> Tensor:
        """Return the squared errors summed over the known measures of each sample, [B], fp32."""
        predictions, std = predicted_measures(context.student)
        known = context.targets["measures_known"]
        errors = torch.where(known, (predictions - context.targets["measures"]) / std, 0.0)
        return (errors**2).sum(dim=1)


@OBJECTIVES.register_module()
class VolumeConsistency(Objective):
    """Difference of the predicted ejection fraction to that of the predicted volumes: |EF - 100 (EDV - ESV) / EDV|.

    In standard deviations of EF. An item is a sample with a known measure. An EDV below 1 mL counts as 1 mL.

    Args:
        weight: Factor of this term.
        names: Names of EF (percent), EDV (mL) and ESV (mL) in the head, which may have another order.
    """

    reads = "measures"
    reads_targets = False

    def __init__(
        self, weight: float | dict[str, float] = 1.0, names: tuple[str, str, str] = ("EF", "EDV", "ESV")
    ) -> None:
        super().__init__(weight)
        if len(set(names)) != 3:
            raise ConfigError(f"VolumeConsistency.names must be the three names of EF, EDV and ESV, not {list(names)}")
        self.names = tuple(names)
        self.indices = (0, 1, 2)
        """Indices of EF, EDV and ESV among the measures of the head."""

    def connect(self, student: Bundle, teacher: Bundle | None) -> None:
        """Find the three measures in the head. Raise `ConfigError` if one is missing."""
        measures = list(student.encoder.measures)
        missing = [name for name in self.names if name not in measures]
        if missing:
            raise ConfigError(
                f"VolumeConsistency needs the measures {', '.join(self.names)}, and the head of the model has "
                f"{', '.join(measures) or 'none'}: add {missing[0]} to model_args.heads.measures.measures, or remove "
                "the objective"
            )
        first, second, third = (measures.index(name) for name in self.names)
        self.indices = (first, second, third)

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Return 1 for each sample with a known measure, else 0, [B]."""
        return targets["measures_known"].any(dim=1).long()

    def total(self, context: Context) -> Tensor:
        """Return the difference of each sample, [B], fp32."""
        predictions, std = predicted_measures(context.student)
        fraction, diastolic, systolic = (predictions[:, index] for index in self.indices)
        implied = 100 * (1 - systolic / diastolic.clamp_min(1.0))
        return (fraction - implied).abs() / std[self.indices[0]] * self.count(context.targets)


def predicted_measures(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Return the predicted measures [B, K] and the standard deviations [K] of the training split, fp32."""
    if "measures" not in outputs.heads:
        raise ConfigError("the model has no RegressionHead: set model_args.heads = dict(measures=...)")
    return outputs.heads["measures"].float(), outputs.heads["measures_std"].float()
