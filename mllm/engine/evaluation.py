"""What the model answers on a split that it was not trained on, generated as in use, never teacher-forced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mllm.errors import UserError
from mllm.metrics.areas import boxes_of
from mllm.metrics.coco import rle
from mllm.models.generation.answers import answers
from mllm.structures import Answer, Bundle, Sample

Metric = Callable[[Sequence[Answer], Sequence[Answer]], dict[str, float]]
"""An entry of METRICS."""
PLAIN = "accuracy"
"""The metric whose figures are known by their own names; those of others bear the metric's name before them."""


class Samples(Protocol):
    """What every dataset offers."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The sample of a row as an epoch sees it."""
        ...


@dataclass(frozen=True)
class Examination:
    """A split as the model answered it."""

    rows: list[dict[str, Any]]
    """Every row with the model's `prediction` beside its `reference`."""
    figures: dict[str, dict[str, float]]
    """Metric -> figure -> value."""
    skipped: list[str]
    """The rows that could not be asked about, one sentence each."""

    @property
    def named_figures(self) -> dict[str, float]:
        """All figures in one table: `accuracy`, `chance`, and those of other metrics as `rec/accuracy`."""
        return {
            key if metric == PLAIN else f"{metric}/{key}": value
            for metric, values in self.figures.items()
            for key, value in values.items()
        }


class _Asked:
    """The samples of a split one at a time, remembering each one's question and true answer.

    With `skip_failures` a row that cannot be read or encoded is left out, and its sentence kept.
    """

    def __init__(self, bundle: Bundle, samples: Samples, skip_failures: bool) -> None:
        self.bundle, self.samples, self.skip_failures = bundle, samples, skip_failures
        self.rows: list[dict[str, Any]] = []
        self.references: list[Answer] = []
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self.samples)):
            try:
                sample = self.samples.sample(index)
                if self.skip_failures:
                    self.bundle.encoder.prompt(sample)
                reference = self.bundle.encoder.reference(sample)
            except UserError as error:
                if not self.skip_failures:
                    raise
                self.skipped.append(str(error))
                continue
            question = [turn.text for turn in sample.turns if turn.role == "user"][-1]
            self.references.append(reference)
            self.rows.append({"source": sample.source, "question": question, "reference": reference.text})
            yield sample


def examine(
    bundle: Bundle,
    samples: Samples,
    metrics: Mapping[str, Metric],
    skip_failures: bool = False,
    **options: Any,
) -> Examination:
    """Asks every question of a split and takes the figures of `metrics` (name -> metric) of the answers.

    A row has `source`, `question`, `reference`, `prediction`, `tokens` (generated, the end of the turn included) and
    what `places` gives of the prediction's marks and, as `reference_...`, of the true ones. Where the question names
    boxes, they are no part of either. `options` are those of `generate`. Raises `DataError` where a row cannot be used,
    unless `skip_failures`.
    """
    asked = _Asked(bundle, samples, skip_failures)
    predictions = answers(bundle, asked, **options)
    rows = [
        {
            **row,
            "prediction": prediction.text,
            "tokens": prediction.tokens,
            **places(prediction),
            **places(reference, "reference_"),
        }
        for row, prediction, reference in zip(asked.rows, predictions, asked.references, strict=True)
    ]
    figures = {name: metric(predictions, asked.references) for name, metric in metrics.items()} if rows else {}
    return Examination(rows, figures, asked.skipped)


def places(answer: Answer, prefix: str = "") -> dict[str, Any]:
    """An answer's marks as a row of a file has them; only what there is.

    `boxes` are x1 y1 x2 y2 and `points` x y in pixels of the image, rounded to 0.1; a mark without a box has the
    smallest around its mask. `masks` are COCO's compressed run lengths. `box_images` says for each box in which image
    it lies, from 0, where that is not the first for all. `unreadable` counts places that cannot be read. `measures` are
    in their own units.
    """
    boxes = boxes_of(answer)
    found: dict[str, Any] = {
        "boxes": [_rounded(box.corners) for box in boxes],
        "box_images": [box.image for box in boxes] if any(box.image for box in boxes) else [],
        "points": [_rounded(mark.point) for mark in answer.marks if mark.point is not None],
        "masks": [rle(mark.mask) for mark in answer.marks if mark.mask is not None],
        "unreadable": answer.unreadable,
        "measures": answer.measures,
    }
    return {prefix + name: value for name, value in found.items() if value}


def described(figures: Mapping[str, float]) -> str:
    """Figures in one line: `accuracy 0.8750, failed 3`."""
    return ", ".join(f"{name} {number(value)}" for name, value in figures.items())


def number(value: float) -> str:
    """A count as it is, any other number with four decimals."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _rounded(numbers: Sequence[float]) -> list[float]:
    return [round(float(value), 1) for value in numbers]
