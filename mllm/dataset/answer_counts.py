"""Counts of the contents of the answers of a split, by which metrics that cannot apply are refused."""

from __future__ import annotations

from collections import Counter

from mllm.contents import Content, contents_of, reference_of
from mllm.parsing import options_in
from mllm.structures import Sample

MANY_ANSWERS = 50_000
"""Maximum number of different answers that are counted."""
MAX_TEXTS = 2_000
"""Maximum number of different answers whose texts are kept."""
SMALL_SPLIT = 20
"""Number of rows below which all answers of a split may be different choices."""
CHOICE_WORDS = 5
"""Maximum number of words of an answer in a small split that may be a choice."""


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
        self.texts: dict[tuple[str | None, str], None] = {}
        """The first `MAX_TEXTS` different answers, with their tasks."""
        self._texts: Counter[int] = Counter()
        self._short = 0
        """Number of rows whose answer has few words, or whose question lists options."""

    def add(self, sample: Sample) -> None:
        """Count the answer of a row."""
        self.rows += 1
        self.unknown += not sample.turns
        self.tasks[sample.task] += 1
        answer = reference_of(sample)
        for content in contents_of(answer):
            self.contents[content] += 1
        if not (text := answer.text.strip()):
            return
        if len(self.texts) < MAX_TEXTS:
            self.texts[sample.task, text] = None
        if len(self._texts) <= MANY_ANSWERS:
            self._texts[hash(text.casefold())] += 1
        if self.rows <= SMALL_SPLIT:
            questions = (turn.text for turn in sample.turns if turn.role == "user")
            self._short += len(text.split()) <= CHOICE_WORDS or any(map(options_in, questions))

    @property
    def choices(self) -> int:
        """Return the number of rows whose answer may be a choice among a few; 0 if most rows have none.

        A choice is also the answer of another row. In a small split it may be the answer of one row, if it is short or
        its question lists options.
        """
        count = max(self._short, self.repeated) if self.rows < SMALL_SPLIT else self.repeated
        return count if 2 * count > self.rows else 0

    @property
    def repeated(self) -> int:
        """Return the number of rows whose answer is also that of another row; 0 for a very large number of answers."""
        return sum(count for count in self._texts.values() if count > 1) if len(self._texts) <= MANY_ANSWERS else 0
