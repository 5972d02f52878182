"""What the model answers on a split that it was not trained on, generated as in use, never teacher-forced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from mllm.models.generation import generate
from mllm.structures import Bundle, Sample


class Samples(Protocol):
    """What every dataset offers."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The sample of a row as an epoch sees it."""
        ...


class _Asked:
    """The samples of a split one at a time, remembering each one's question and true answer."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.rows: list[dict[str, str]] = []

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self.samples)):
            sample = self.samples.sample(index)
            answered = sample.turns[-1].role == "assistant"
            question = [turn.text for turn in sample.turns if turn.role == "user"][-1]
            reference = sample.turns[-1].text if answered else ""
            self.rows.append({"source": sample.source, "question": question, "reference": reference})
            yield sample


def examine(
    bundle: Bundle,
    samples: Samples,
    metric: Callable[[Sequence[str], Sequence[str]], dict[str, float]] | None,
    **options: Any,
) -> tuple[list[dict[str, str]], dict[str, float]]:
    """Every row of a split with the model's `prediction` beside its `reference`, and the metric's figures.

    `options` are those of `generate`.
    """
    asked = _Asked(samples)
    predictions = generate(bundle, asked, **options)
    rows = [{**row, "prediction": prediction} for row, prediction in zip(asked.rows, predictions, strict=True)]
    references = [row["reference"] for row in rows]
    return rows, metric(predictions, references) if metric else {}
