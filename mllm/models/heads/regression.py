"""Head for measures of named views, such as the volumes of a heart in its end-diastolic and end-systolic frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mllm.errors import ConfigError, hint
from mllm.registry import HEADS


@HEADS.register_module()
class RegressionHead(nn.Module):
    """Regression of `measures`, in their own units, from the mean features of `views`, in this order.

    Network as in the feature fusion of GEMMA 3NCORE: concatenation of the views, Linear to `hidden`, LayerNorm, ReLU,
    dropout, Linear to half of it, LayerNorm, ReLU; then one Linear layer, where GEMMA 3NCORE has Tanh and three heads.
    The last layer predicts normalized values. Their `mean` and `std` are those of the training split, set by
    `normalize` and saved with the head, or those of `scale`, which private training requires: `dict(EF=(55.0, 12.0))`.
    A head loaded from an earlier run keeps its own. Computes in fp32.

    With `per_token` it counts: LayerNorm, Linear to `hidden`, GELU, dropout and Linear compute values of each image
    token (of all views at its place), and their sum over the T tokens, divided by sqrt(T), is the normalized value. The
    mean features that the other network reads are normalized, so they lose how much of an image something covers.
    """

    predicts = "measures"
    """Name under which objectives read the predictions."""

    def __init__(
        self,
        width: int,
        measures: Sequence[str] = ("EF", "EDV", "ESV"),
        views: Sequence[str] = ("ED", "ES"),
        hidden: int = 512,
        dropout: float = 0.2,
        scale: Mapping[str, Sequence[float]] | None = None,
        per_token: bool = False,
    ) -> None:
        super().__init__()
        for key, names in (("measures", measures), ("views", views)):
            if not names or len(set(names)) != len(names):
                raise ConfigError(f"{key} of a RegressionHead must be different names, not {list(names)}")
        self.measures, self.views = tuple(measures), tuple(views)
        self.per_token = per_token
        """It reads the tokens of the views instead of their mean features."""
        self.norm = nn.LayerNorm(width)
        inputs, outputs = len(views) * width, len(measures)
        if per_token:
            layers = [nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, outputs)]
        else:
            layers = [
                *(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(dropout)),
                *(nn.Linear(hidden, hidden // 2), nn.LayerNorm(hidden // 2), nn.ReLU()),
                nn.Linear(hidden // 2, outputs),
            ]
        self.fusion = nn.Sequential(*layers)
        # Parameters instead of buffers, so they are saved with the trained tensors. They are never trained.
        self.mean = nn.Parameter(torch.zeros(len(measures)), requires_grad=False)
        self.std = nn.Parameter(torch.ones(len(measures)), requires_grad=False)
        self.is_scaled = scale is not None
        """True if `normalize` must not change `mean` and `std`."""
        if scale is not None:
            self._set_scale(scale)

    def _set_scale(self, scale: Mapping[str, Sequence[float]]) -> None:
        """Set mean and standard deviation of each measure from the config."""
        for name in scale:
            if name not in self.measures:
                raise ConfigError(f"scale of a RegressionHead has no measure '{name}'{hint(name, self.measures)}")
        for index, name in enumerate(self.measures):
            pair = scale.get(name, ())
            if len(pair) != 2 or not pair[1] > 0:
                raise ConfigError(
                    f"scale of a RegressionHead needs mean and standard deviation of every measure, such as "
                    f"dict({name}=(55.0, 12.0)), but has {tuple(pair)} for '{name}'"
                )
            self.mean.data[index], self.std.data[index] = pair[0], pair[1]

    def normalize(self, known: Mapping[str, Sequence[float]]) -> None:
        """Set mean and standard deviation of each measure from its known values, unless they are already set.

        Raise `ConfigError` for a measure with fewer than two different values.
        """
        for index, name in enumerate(() if self.is_scaled else self.measures):
            values = torch.tensor(list(known.get(name, ())), dtype=torch.float64)
            if len(values) < 2 or float(values.std()) == 0:
                raise ConfigError(
                    f"the training split has {len(values)} known values of the measure '{name}', but a RegressionHead "
                    f"needs at least two that differ; remove it from model_args.heads, or add rows that have it"
                )
            self.mean.data[index], self.std.data[index] = float(values.mean()), float(values.std())

    def forward(self, features: Tensor) -> Tensor:
        """Return the measures [B, K] in their own units.

        Args:
            features: Mean features of the views [B, V, D], or with `per_token` their tokens [B, V, T, D].
        """
        with torch.autocast(features.device.type, enabled=False):
            normed = self.norm(features.to(self.mean))
            if self.per_token:
                tokens_BTX = normed.transpose(1, 2).flatten(2)
                normalized: Tensor = self.fusion(tokens_BTX).sum(dim=1) / tokens_BTX.shape[1] ** 0.5
            else:
                normalized = self.fusion(normed.flatten(1))
            return self.mean + self.std * normalized
