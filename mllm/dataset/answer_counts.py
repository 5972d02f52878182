"""Counts of the contents of the answers of a split, by which metrics that cannot apply are refused."""

from __future__ import annotations

from collections import Counter

from mllm.contents import Content, contents_of, reference_of
from mllm.structures import Sample

MANY_ANSWERS = 50_000
"""Maximum number of different answers that are counted."""


class AnswerCounts:
    """Contents of the answers of a split."""

    def __init__(self) -> None:
        self.rows = 0
        """Number of usable rows."""
        self.unknown = 0
        """Number of rows whose class does not return their turns without decoding images."""
        self.contents: Counter[Content] = Counter()
        """Number of rows whose answer has each content."""
        self.tasks: Counter[str | None] = Counter()
        """Number of rows of each task; None: rows without a task."""
        self._texts: Counter[int] = Counter()

    def add(self, sample: Sample) -> None:
        """Count the answer of a row."""
        self.rows += 1
        self.unknown += not sample.turns
        self.tasks[sample.task] += 1
        answer = reference_of(sample)
        self.contents.update(contents_of(answer))
        if (text := answer.text.strip()) and len(self._texts) <= MANY_ANSWERS:
            self._texts[hash(text.casefold())] += 1

    @property
    def repeated(self) -> int:
        """Return the number of rows whose answer is also that of another row; 0 for a very large number of answers."""
        return sum(count for count in self._texts.values() if count > 1) if len(self._texts) <= MANY_ANSWERS else 0
