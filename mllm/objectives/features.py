"""Learning to see like a frozen teacher, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mllm.errors import ConfigError
from mllm.objectives.base import Objective
from mllm.registry import OBJECTIVES
from mllm.structures import Bundle, Context

SIDES = ("student", "teacher")
FLOOR = 0.01
"""The least standard deviation by which a channel is divided, in those of its layer (their root mean square)."""
RIDGE = 0.1
"""How much of an input's variance of 1 is added to it where projectors begin, so that few images suffice."""


@OBJECTIVES.register_module()
class FeatureMatch(Objective):
    """How far the student's inner features, projected, are from the teacher's (GEMMA 3NCORE; FitNets, arXiv:1412.6550).

    `student_layers` and `teacher_layers` are numbers of layers or module paths, in pairs, the student's first three
    blocks unless said otherwise; None: as many layers as the other has, evenly spread to the last (8, 17 and 26 of 27).
    Both are averaged to a `grid` x `grid`: 1 as published, which leaves no place; more keeps where things are.
    `normalize` (False as published): from the features of both, the mean of every place is taken and each channel is
    divided by its standard deviation, as they are in the training split before training, and projectors begin as the
    best linear maps. What all images share is most of the distance otherwise, and projectors would learn it first.
    `distance`: 'mse', or 'cosine' (1 - cosine). `layer_weights`: one for each pair, None: all alike. An item is a view;
    its loss is the mean over places, channels and pairs.
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
                raise ConfigError(f"FeatureMatch matches {count} layers of the student, and {name} has {len(value)}")
        if grid < 1:
            raise ConfigError(f"FeatureMatch.grid must be at least 1, not {grid}")
        if distance not in ("mse", "cosine"):
            raise ConfigError(f"FeatureMatch.distance is 'mse' or 'cosine', not '{distance}'")
        shares = torch.tensor(list(layer_weights or [1.0] * count))
        if (shares < 0).any() or shares.sum() == 0:
            raise ConfigError(f"FeatureMatch.layer_weights must be at least 0 and not all 0, not {layer_weights}")
        self.student_layers, self.teacher_layers, self.pairs = student_layers, teacher_layers, count
        self.grid, self.distance, self.normalize = grid, distance, normalize
        self.register_buffer("shares", shares / shares.sum(), persistent=False)
        self.projectors = nn.ModuleList()
        self.paths: list[tuple[str, str]] = []

    def connect(self, student: Bundle, teacher: Bundle | None) -> None:
        """Taps both models and makes a projector from each student's width to its teacher's."""
        assert teacher is not None, "the rules refuse FeatureMatch without a teacher"
        narrow = student.model.tap(self.student_layers, self.pairs, self.grid)
        wide = teacher.model.tap(self.teacher_layers, self.pairs, self.grid)
        self.paths = [(ours, theirs) for (ours, _), (theirs, _) in zip(narrow, wide, strict=True)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same start in every process and run
            self.projectors = nn.ModuleList(nn.Linear(n, w) for (_, n), (_, w) in zip(narrow, wide, strict=True))

    def fit(self, student: Sequence[dict[str, Tensor]], teacher: Sequence[dict[str, Tensor]]) -> None:
        """Takes means and standard deviations from both models' taps [B, V, C, g, g] of images of the training split.

        They stay as they are, also when the student changes. Projectors begin as the best linear maps (ridge
        regression): from random ones, a small learning rate would not come near the teacher.
        """
        for index, (projector, paths) in enumerate(zip(self.projectors, self.paths, strict=True)):
            normal = []
            for side, path, taps in zip(SIDES, paths, (student, teacher), strict=True):
                device = taps[0][path].device
                values = torch.cat([seen[path].detach().flatten(0, 1) for seen in taps]).cpu().double()
                mean, std = _spread(values)
                self.register_buffer(f"{side}_mean_{index}", mean.float().to(device), persistent=False)
                self.register_buffer(f"{side}_std_{index}", std.float().to(device), persistent=False)
                normal.append(((values - mean) / std).movedim(1, -1).flatten(0, -2))
            assert isinstance(projector, nn.Linear)
            with torch.no_grad():
                projector.weight.copy_(_ridge(*normal))
                projector.bias.zero_()

    def _normalized(self, features: Tensor, side: str, index: int) -> Tensor:
        """Features [B, V, C, g, g] in fp32, normalized where `fit` was called."""
        spread = dict(self.named_buffers(recurse=False))
        if f"{side}_mean_{index}" not in spread:
            return features.float()
        return (features.float() - spread[f"{side}_mean_{index}"]) / spread[f"{side}_std_{index}"]

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """The views of each sample, [B]; none where a sample only fills a batch up."""
        return targets["views_known"].sum(dim=1)

    def total(self, context: Context) -> Tensor:
        """The distance summed over each sample's views, [B], fp32."""
        if context.teacher is None:
            raise ConfigError("the objective FeatureMatch needs a teacher: set distill_args = dict(teacher=...)")
        assert self.paths, "connect was not called"
        shares = self.get_buffer("shares")
        known_BV = context.targets["views_known"]
        total_BV = known_BV.new_zeros(known_BV.shape, dtype=torch.float32)
        for index, (share, projector, (narrow, wide)) in enumerate(
            zip(shares, self.projectors, self.paths, strict=True)
        ):
            seen, true = context.student.taps[narrow], context.teacher.taps[wide].detach()
            if torch.is_grad_enabled() and not seen.requires_grad:
                raise ConfigError(
                    f"FeatureMatch teaches nothing: {narrow} of the student carries no gradient, so that its projector "
                    "alone would learn; train the layers before it (model_args.lora_target='vision' or train_vision)"
                )
            assert isinstance(projector, nn.Linear)
            with torch.autocast(seen.device.type, enabled=False):
                seen = self._normalized(seen, "student", index).movedim(2, -1)
                # A backend that keeps weights in half precision, such as DeepSpeed, has the projector's in it too.
                seen = projector(seen.to(projector.weight.dtype)).float().movedim(-1, 2)
                true = self._normalized(true, "teacher", index)
            if self.distance == "mse":
                total_BV = total_BV + share * (seen - true).square().flatten(2).mean(dim=2)
            else:
                total_BV = total_BV + share * (1 - F.cosine_similarity(seen, true, dim=2)).flatten(2).mean(dim=2)
        return (total_BV * known_BV).sum(dim=1)


def _spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [C, g, g] and each channel's standard deviation around it [C, 1, 1] of features [N, C, g, g].

    Where nothing varies at all, as in a single image, it is 1.
    """
    mean = values.mean(dim=0)
    std = (values - mean).square().mean(dim=(0, 2, 3), keepdim=True)[0].sqrt()
    floor = FLOOR * float(std.square().mean().sqrt())
    return mean, std.clamp_min(floor) if floor > 0 else torch.ones_like(std)


def _ridge(narrow: Tensor, wide: Tensor) -> Tensor:
    """The weight [W, N] that maps centered rows [R, N] to [R, W] with the least squared error, shrunk by `RIDGE`."""
    gram = narrow.T @ narrow
    gram.diagonal().add_(RIDGE * len(narrow))
    return torch.linalg.solve(gram, narrow.T @ wide).T
