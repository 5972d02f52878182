"""Numbers from named views of one patient: a heart's volumes from its end-diastolic and end-systolic frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mllm.errors import ConfigError
from mllm.registry import HEADS


@HEADS.register_module()
class RegressionHead(nn.Module):
    """Reads `measures`, in their own units, from the mean features of `views`, whose order is that of their names here.

    As GEMMA 3NCORE's feature fusion: the views side by side, Linear to `hidden`, LayerNorm, ReLU, dropout, Linear to
    half of it, LayerNorm, ReLU; then one Linear instead of its Tanh and three heads. Its last layer gives normalized
    values: `mean` and `std` are those of the training split, set by `normalize` and saved with the head. Where they are
    known from elsewhere, as they must be for a private training, `scale` gives both: `dict(EF=(55.0, 12.0))`. A head
    that was trained before keeps its own. Computes in fp32.
    """

    def __init__(
        self,
        width: int,
        measures: Sequence[str] = ("EF", "EDV", "ESV"),
        views: Sequence[str] = ("ED", "ES"),
        hidden: int = 512,
        dropout: float = 0.2,
        scale: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        for key, names in (("measures", measures), ("views", views)):
            if not names or len(set(names)) != len(names):
                raise ConfigError(f"{key} of a RegressionHead must be different names, not {list(names)}")
        self.measures, self.views = tuple(measures), tuple(views)
        self.norm = nn.LayerNorm(width)
        self.fusion = nn.Sequential(
            nn.Linear(len(views) * width, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden // 2),
            nn.LayerNorm(hidden // 2),
            nn.ReLU(),
            nn.Linear(hidden // 2, len(measures)),
        )
        # Parameters and not buffers, so that they are saved with what trains; they never train themselves.
        self.mean = nn.Parameter(torch.zeros(len(measures)), requires_grad=False)
        self.std = nn.Parameter(torch.ones(len(measures)), requires_grad=False)
        self.is_scaled = scale is not None
        """Whether `mean` and `std` stay as they are."""
        if scale is not None:
            self._take(scale)

    def _take(self, scale: Mapping[str, Sequence[float]]) -> None:
        """Takes mean and standard deviation of each measure from the config."""
        for index, name in enumerate(self.measures):
            pair = scale.get(name, ())
            if len(pair) != 2 or not pair[1] > 0:
                raise ConfigError(
                    f"scale of a RegressionHead gives mean and standard deviation of every measure, such as "
                    f"dict({name}=(55.0, 12.0)), and of '{name}' it has {tuple(pair)}"
                )
            self.mean.data[index], self.std.data[index] = pair[0], pair[1]

    def normalize(self, known: Mapping[str, Sequence[float]]) -> None:
        """Takes mean and standard deviation of each measure from its known values in the training split, unless given.

        Raises `ConfigError` for a measure with fewer than two different values.
        """
        for index, name in enumerate(() if self.is_scaled else self.measures):
            values = torch.tensor(list(known.get(name, ())), dtype=torch.float64)
            if len(values) < 2 or float(values.std()) == 0:
                raise ConfigError(
                    f"the training split has {len(values)} known values of the measure '{name}', and none that differ: "
                    f"a RegressionHead cannot learn it; take it out of model_args.heads, or give rows that have it"
                )
            self.mean.data[index], self.std.data[index] = float(values.mean()), float(values.std())

    def forward(self, features_BVD: Tensor) -> Tensor:
        """The measures [B, K] in their own units, from features [B, V, D]."""
        with torch.autocast(features_BVD.device.type, enabled=False):
            normalized: Tensor = self.fusion(self.norm(features_BVD.to(self.mean)).flatten(1))
            return self.mean + self.std * normalized
