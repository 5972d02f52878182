"""Warnings about answers in the notation of a program or in a wrong encoding, which would be learned as they are."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from mllm.dataset.base import SampleDataset
from mllm.dataset.rows import Row
from mllm.private_messages import PublicText
from mllm.structures import Sample

logger = logging.getLogger(__name__)

_FORMS = {
    "are lists in the notation of a program, such as ['yes', 'no']: write one answer": r"\s*\[\s*(['\"]).*\1\s*\]\s*",
    "are bytes in the notation of Python, such as b'yes': decode them": r"\s*b(['\"]).*\1\s*",
    "have characters in the notation of HTML, such as &lt; for <: write the characters": (
        r".*&(?:lt|gt|amp|quot|apos|nbsp|#\d{1,6}|#x[\da-fA-F]{1,5});.*"
    ),
    r"have a backslash and a letter for the end of a line (\n): write the line break": r".*\\[nr](?![a-z]).*",
    "have characters of a wrong encoding, such as \u00c3\u00a4 for \u00e4: read their source as UTF-8": (
        ".*(?:\ufffd|\u00c3[\u0080-\u00bf]|\u00c2[\u00a0-\u00bf]|\u00e2\u20ac).*"
    ),
}
"""Fault and its fix -> pattern of an answer."""


@dataclass
class _Found:
    """Answers in one form."""

    first: Row
    count: int = 0


class AnswerForms:
    """Answers of a split in the forms of `_FORMS`."""

    def __init__(self, split: str) -> None:
        self.split, self._answers = split, 0
        self._found: dict[str, _Found] = {}

    def add(self, sample: Sample, dataset: SampleDataset, index: int) -> None:
        """Read the answers of a row."""
        for turn in sample.turns:
            if turn.role == "assistant":
                self._answers += 1
                if _may_have_form(turn.text):
                    self._add(turn.text, dataset, index)

    def _add(self, text: str, dataset: SampleDataset, index: int) -> None:
        for fault, form in _FORMS.items():
            if re.fullmatch(form, text, re.DOTALL):
                self._found.setdefault(fault, _Found(Row.current(dataset, index))).count += 1

    def report(self) -> None:
        """Log one warning for each form, with its first row."""
        for fault, found in self._found.items():
            message = f"{self.split}: {found.count:,} of {self._answers:,} answers {fault} ({found.first.name})"
            logger.warning("%s", PublicText(message))


def _may_have_form(text: str) -> bool:
    """Return False for an answer in none of the forms, at the cost of a few searches for a character."""
    return "&" in text or "\\" in text or "[" in text or not text.isascii() or text.lstrip()[:2] in ("b'", 'b"')
