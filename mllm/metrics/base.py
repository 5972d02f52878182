"""Interface of metrics: functions of all answers, and streaming metrics, which read one answer at a time."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from mllm.contents import Content
from mllm.errors import ConfigError
from mllm.metrics.parts import UNITS, PartFile
from mllm.structures import Answer

Metric = Callable[[Sequence[Answer], Sequence[Answer]], dict[str, float]]
"""Entry of METRICS that is a function: predictions and references -> figures."""
Reads = Literal[Content, "choices", "findings"]
"""Content of a reference that a metric compares. "choices": a text that is one of a few answers of the split.
"findings": a text that affirms a finding of a chest X-ray."""
REQUIRED: Mapping[Reads, str] = {
    "text": "a text as its answer",
    "box": "a box or a mask in its answer",
    "mask": "a mask in its answer",
    "measures": "a known measure, in a field or in its answer (`EF 58.4 %`)",
    "number": "a number as its answer (`12`, `58.4 %`)",
    "objects": "boxes in its answer, as marks or in its text (`[10, 20, 30, 40]`)",
    "instances": 'boxes by identity as its answer, in JSON (`{"1": [[10, 20, 30, 40]]}`)',
    "choices": "an answer that is one of a few: most rows have an answer of their own",
    "findings": "a finding of a chest X-ray in its answer (`There is a pleural effusion.`)",
}
"""Content that a metric reads -> its description in messages, after "none of the rows has"."""
M = TypeVar("M", bound=Callable[..., Any])
V = TypeVar("V")
_READS: dict[Callable[..., Any], Reads] = {}

CLASSIFICATION = "classification"
LABELS = "multi_label_classification"
DETECTION = "detection"
INSTANCES = "instance_detection"
COUNTING = "counting"
REGRESSION = "regression"
REPORT = "report_generation"
"""Tasks of samples, which a dataset may name in `Sample.task`. Others have no metric of their own."""


def reads(content: Reads) -> Callable[[M], M]:
    """Return a decorator that declares the content of references without which a metric has nothing to compute."""

    def declare(metric: M) -> M:
        _READS[metric] = content
        return metric

    return declare


def content_read(metric: Callable[..., Any]) -> Reads | None:
    """Return the content that a metric declares by `reads`. None: it declares none and applies to all rows."""
    return _READS.get(metric)


def part_read(metric: Callable[..., Any]) -> Content | None:
    """Return the part of an answer that a metric reads; choices and findings are read from its text. None: all."""
    content = content_read(metric)
    return "text" if content == "choices" or content == "findings" else content


def computed_once(method: Callable[[Any], V]) -> Callable[[Any], V]:
    """Decorate a method of a metric whose result is kept until the next answer: the bootstrap needs it many times.

    The result must not be a view of an `array`, which could not grow then.
    """
    name = f"_once_{method.__name__}"

    @functools.wraps(method)
    def once(self: Any) -> V:
        known = vars(self).get(name)
        if known is None or known[0] != len(self):
            known = vars(self)[name] = len(self), method(self)
        result: V = known[1]
        return result

    return once


class StreamingMetric(ABC):
    """Metric that reads one answer at a time.

    Its figures are functions of the weights of the samples, so that a bootstrap needs no second pass over the answers.
    """

    tasks: ClassVar[frozenset[str]] = frozenset()
    """Tasks that the metric is for. Samples of other tasks are left out, samples without a task are not. Empty: all."""
    intervals: ClassVar[tuple[str, ...]] = ()
    """Figures with a 95 % interval. Empty: all."""

    needs_scores: ClassVar[bool] = False
    """True for a metric of the probabilities of options, which generated answers do not have."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Packages of the extra `evaluation` that the metric needs."""

    @classmethod
    def require(cls) -> None:
        """Raise `ConfigError` if a package or a program that the metric needs is not installed."""
        for package in cls.packages:
            if find_spec(package) is None:
                raise ConfigError(f"a metric needs the package {package}: run pip install -e '.[evaluation]'")

    @classmethod
    def has_interval(cls, figure: str) -> bool:
        """Return True if a figure of the metric has a 95 % interval."""
        return not cls.intervals or figure in cls.intervals

    @abstractmethod
    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the answer to one sample."""

    @abstractmethod
    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, N] of the N samples; NaN where a figure is undefined."""

    @abstractmethod
    def counts(self) -> dict[str, float]:
        """Return figures that no bootstrap draws: numbers such as `failed` and `samples`, and baselines."""


class PartedMetric(StreamingMetric):
    """Streaming metric whose figures are functions of sums over units: answers, or random groups of patients.

    Of few answers it keeps some values each, and `figures` gets the weights of the answers. Of more, the values are
    moved part by part to a temporary file, and `figures` gets the weights of the groups, [R, `UNITS`]. So the memory
    does not depend on the number of answers.
    """

    def __init__(self) -> None:
        self._file: PartFile | None = None
        self._moved = 0

    @abstractmethod
    def pending(self) -> int:
        """Return the number of answers whose values are kept."""

    @abstractmethod
    def kept(self) -> Any:
        """Return a copy of the values that are kept, of plain types and arrays."""

    @abstractmethod
    def forget(self) -> None:
        """Forget the values that are kept."""

    def __len__(self) -> int:
        """Return the number of answers."""
        return self._moved + self.pending()

    @property
    def units(self) -> int:
        """Return the number of units."""
        return UNITS if self._moved else len(self)

    def move(self, units: np.ndarray) -> None:
        """Move the values that are kept to a file; `units` [N] are the groups of their answers."""
        assert len(units) == self.pending()
        self._file = self._file or PartFile()
        self._file.append((units, self.kept()))
        self._moved += len(units)
        self.forget()

    def parts(self, is_reversed: bool = False) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield the units of the answers and what `kept` returned of them, part by part in the order of the answers.

        Args:
            is_reversed: The last part is the first one.
        """
        if self._file is None:
            yield np.arange(self.pending()), self.kept()
            return
        assert not self.pending(), "all answers have groups"
        yield from reversed(self._file) if is_reversed else self._file


class SumMetric(PartedMetric):
    """Metric whose figures are functions of sums over the samples.

    A subclass has `columns`, the names of the K values of a sample.
    """

    columns: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        super().__init__()
        self._values = array("d")
        self._sums = np.zeros((0, len(self.columns)))
        self.failed = 0
        """Number of answers that could not be read."""
        self.samples = 0
        """Number of scored samples."""

    @abstractmethod
    def values(self, prediction: Answer, reference: Answer) -> Sequence[float] | None:
        """Return the K values of a sample; None if its reference has nothing to compare."""

    @abstractmethod
    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the figures [R] of the weighted sums, column -> [R]."""

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the answer to one sample."""
        values = self.values(prediction, reference)
        if values is None:
            self._values.extend([0.0] * len(self.columns))
            return
        assert len(values) == len(self.columns)
        self.samples += 1
        self._values.extend(values)

    def pending(self) -> int:
        """Return the number of samples whose values are kept."""
        return len(self._values) // len(self.columns)

    def kept(self) -> np.ndarray:
        """Return the values [N, K] of the samples that are kept."""
        return np.array(self._values, float).reshape(-1, len(self.columns))

    def forget(self) -> None:
        """Forget the values that are kept."""
        self._values = array("d")

    def move(self, units: np.ndarray) -> None:
        """Add the values that are kept to the sums of the groups of their samples, [N]."""
        self._sums = self._sums if self._moved else np.zeros((UNITS, len(self.columns)))
        np.add.at(self._sums, units, self.kept())
        self._moved += len(units)
        self.forget()

    def table(self) -> np.ndarray:
        """Return the values of the samples, or their sums over the groups, [N, K]."""
        assert not (self._moved and self.pending()), "all answers have groups"
        return self._sums if self._moved else self.kept()

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, N] of the samples, or of the groups."""
        sums = weights @ self.table()
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.of_sums(dict(zip(self.columns, sums.T, strict=True)))

    def counts(self) -> dict[str, float]:
        """Return the number of unreadable answers and of scored samples."""
        return {"failed": self.failed, "samples": self.samples}
