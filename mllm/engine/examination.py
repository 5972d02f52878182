"""What the model answers on a split that it was not trained on, generated as in use, never teacher-forced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from mllm.errors import UserError
from mllm.models.generation import generate
from mllm.structures import Bundle, Sample


class Samples(Protocol):
    """What every dataset offers."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The sample of a row as an epoch sees it."""
        ...


class _Asked:
    """The samples of a split one at a time, remembering each one's question and true answer.

    With `skip_failures` a row that cannot be read or encoded is left out, and its sentence kept.
    """

    def __init__(self, bundle: Bundle, samples: Samples, skip_failures: bool) -> None:
        self.bundle, self.samples, self.skip_failures = bundle, samples, skip_failures
        self.rows: list[dict[str, str]] = []
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self.samples)):
            try:
                sample = self.samples.sample(index)
                if self.skip_failures:
                    self.bundle.encoder.prompt(sample)
            except UserError as error:
                if not self.skip_failures:
                    raise
                self.skipped.append(str(error))
                continue
            answered = sample.turns[-1].role == "assistant"
            question = [turn.text for turn in sample.turns if turn.role == "user"][-1]
            reference = sample.turns[-1].text if answered else ""
            self.rows.append({"source": sample.source, "question": question, "reference": reference})
            yield sample


def examine(
    bundle: Bundle,
    samples: Samples,
    metric: Callable[[Sequence[str], Sequence[str]], dict[str, float]] | None,
    skip_failures: bool = False,
    **options: Any,
) -> tuple[list[dict[str, str]], dict[str, float], list[str]]:
    """Every row of a split with the model's `prediction` beside its `reference`, the metric's figures, and what failed.

    `options` are those of `generate`. Raises `DataError` where a row cannot be used, unless `skip_failures`.
    """
    asked = _Asked(bundle, samples, skip_failures)
    predictions = generate(bundle, asked, **options)
    rows = [{**row, "prediction": prediction} for row, prediction in zip(asked.rows, predictions, strict=True)]
    references = [row["reference"] for row in rows]
    return rows, metric(predictions, references) if metric and rows else {}, asked.skipped
