"""Distillation of intermediate features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mllm.errors import ConfigError
from mllm.objectives.base import Objective
from mllm.protocols import Bundle
from mllm.registry import OBJECTIVES
from mllm.structures import Context

SIDES = ("student", "teacher")
FLOOR = 0.01
"""Lower bound of the standard deviation of a channel, as a fraction of the root mean square over channels."""
RIDGE = 0.1
"""Ridge penalty of the initial projectors per image position. Inputs have variance 1."""


@OBJECTIVES.register_module()
class FeatureMatch(Objective):
    """Distance of projected student features and teacher features (GEMMA 3NCORE; FitNets, arXiv:1412.6550).

    An item is a view. Its loss is the mean over positions, channels and pairs of layers.

    Args:
        weight: Factor of this term.
        student_layers: Indices or module paths of layers, by default the first three blocks. None: as many layers as
            `teacher_layers` has, evenly spaced up to the last (8, 17 and 26 of 27).
        teacher_layers: The teacher's layer for each student layer. None: evenly spaced.
        grid: Features are average-pooled to grid x grid. 1, as published, keeps no positions.
        distance: 'mse', or 'cosine' for 1 - cosine similarity.
        layer_weights: Weight of each pair. None: equal weights.
        normalize: Subtract the mean of each position and divide each channel by its standard deviation, both computed
            on the training split before the training, and start with projectors fitted by ridge regression. Otherwise
            most of the distance is equal for all images, and projectors learn that part first. False as published.
    """

    teacher = "features"

    def __init__(
        self,
        weight: float | dict[str, float] = 1.0,
        student_layers: Sequence[int | str] | None = (0, 1, 2),
        teacher_layers: Sequence[int | str] | None = None,
        grid: int = 1,
        distance: Literal["mse", "cosine"] = "mse",
        layer_weights: Sequence[float] | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__(weight)
        count = len(student_layers or teacher_layers or (0, 1, 2))
        for name, value in (("teacher_layers", teacher_layers), ("layer_weights", layer_weights)):
            if value is not None and len(value) != count:
                raise ConfigError(
                    f"FeatureMatch reads {count} layers of the student, but {name} has {len(value)} entries"
                )
        if grid < 1:
            raise ConfigError(f"FeatureMatch.grid must be at least 1, not {grid}")
        if distance not in ("mse", "cosine"):
            raise ConfigError(f"FeatureMatch.distance must be 'mse' or 'cosine', not '{distance}'")
        pair_weights = torch.tensor(list(layer_weights or [1.0] * count))
        if (pair_weights < 0).any() or pair_weights.sum() == 0:
            raise ConfigError(f"FeatureMatch.layer_weights must be at least 0 and not all 0, not {layer_weights}")
        self.student_layers, self.teacher_layers, self.pairs = student_layers, teacher_layers, count
        self.grid, self.distance, self.normalize = grid, distance, normalize
        self.register_buffer("pair_weights", pair_weights / pair_weights.sum(), persistent=False)
        self.projectors = nn.ModuleList()
        self.paths: list[tuple[str, str]] = []

    def connect(self, student: Bundle, teacher: Bundle | None) -> None:
        """Tap both models and create a projector from student width to teacher width for each pair."""
        assert teacher is not None, "the rules refuse FeatureMatch without a teacher"
        student_taps = student.model.tap(self.student_layers, self.pairs, self.grid)
        teacher_taps = teacher.model.tap(self.teacher_layers, self.pairs, self.grid)
        pairs = list(zip(student_taps, teacher_taps, strict=True))
        self.paths = [(student_path, teacher_path) for (student_path, _), (teacher_path, _) in pairs]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # equal projectors in every process and run
            self.projectors = nn.ModuleList(
                nn.Linear(student_width, teacher_width) for (_, student_width), (_, teacher_width) in pairs
            )

    def fit(self, student: Sequence[dict[str, Tensor]], teacher: Sequence[dict[str, Tensor]]) -> None:
        """Compute means, standard deviations and initial projectors from taps of images of the training split.

        Means and standard deviations do not change during the training. Projectors are initialized by ridge regression,
        because with a small learning rate random projectors would not reach the features of the teacher.

        Args:
            student: Batches of taps [B, V, C, g, g] by module path.
            teacher: The same for the teacher.
        """
        for index, (projector, paths) in enumerate(zip(self.projectors, self.paths, strict=True)):
            normalized = []
            for side, path, taps in zip(SIDES, paths, (student, teacher), strict=True):
                device = taps[0][path].device
                values = torch.cat([batch[path].detach().flatten(0, 1) for batch in taps]).cpu().double()
                mean, std = _mean_and_std(values)
                self.register_buffer(f"{side}_mean_{index}", mean.float().to(device), persistent=False)
                self.register_buffer(f"{side}_std_{index}", std.float().to(device), persistent=False)
                normalized.append(((values - mean) / std).movedim(1, -1).flatten(0, -2))
            assert isinstance(projector, nn.Linear)
            with torch.no_grad():
                projector.weight.copy_(_ridge(*normalized))
                projector.bias.zero_()

    def _normalized(self, features: Tensor, side: str, index: int) -> Tensor:
        """Return features [B, V, C, g, g] in fp32, normalized if `fit` was called."""
        buffers = dict(self.named_buffers(recurse=False))
        if f"{side}_mean_{index}" not in buffers:
            return features.float()
        return (features.float() - buffers[f"{side}_mean_{index}"]) / buffers[f"{side}_std_{index}"]

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Return the number of views of each sample, [B]; 0 for a sample that only pads a batch."""
        return targets["views_known"].sum(dim=1)

    def total(self, context: Context) -> Tensor:
        """Return the distance summed over the views of each sample, [B], fp32."""
        if context.teacher is None:
            raise ConfigError("the objective FeatureMatch needs a teacher: set distill_args = dict(teacher=...)")
        assert self.paths, "connect was not called"
        pair_weights = self.get_buffer("pair_weights")
        known_BV = context.targets["views_known"]
        total_BV = known_BV.new_zeros(known_BV.shape, dtype=torch.float32)
        for index, (weight, projector, (student_path, teacher_path)) in enumerate(
            zip(pair_weights, self.projectors, self.paths, strict=True)
        ):
            features, targets = context.student.taps[student_path], context.teacher.taps[teacher_path].detach()
            if torch.is_grad_enabled() and not features.requires_grad:
                raise ConfigError(
                    f"FeatureMatch has no effect: {student_path} of the student has no gradient, so only its projector "
                    "would be trained; train the layers before it (model_args.lora_target='vision' or train_vision)"
                )
            assert isinstance(projector, nn.Linear)
            with torch.autocast(features.device.type, enabled=False):
                features = self._normalized(features, "student", index).movedim(2, -1)
                # DeepSpeed, for example, keeps all weights in half precision, including those of the projector.
                features = projector(features.to(projector.weight.dtype)).float().movedim(-1, 2)
                targets = self._normalized(targets, "teacher", index)
            if self.distance == "mse":
                distance = (features - targets).square()
            else:
                distance = 1 - F.cosine_similarity(features, targets, dim=2)
            total_BV = total_BV + weight * distance.flatten(2).mean(dim=2)
        return (total_BV * known_BV).sum(dim=1)


def _mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [C, g, g] and the standard deviation of each channel [C, 1, 1] of features [N, C, g, g].

    The standard deviation is 1 if all features are constant, as with a single image.
    """
    mean = values.mean(dim=0)
    std = (values - mean).square().mean(dim=(0, 2, 3), keepdim=True)[0].sqrt()
    floor = FLOOR * float(std.square().mean().sqrt())
    return mean, std.clamp_min(floor) if floor > 0 else torch.ones_like(std)


def _ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the weight [T, I] of the ridge regression from centered inputs [R, I] to targets [R, T]."""
    gram = inputs.T @ inputs
    gram.diagonal().add_(RIDGE * len(inputs))
    return torch.linalg.solve(gram, inputs.T @ targets).T
