"""The page `data.html`: one file without references to other files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mllm.report.data.findings import Finding, SplitFindings
from mllm.report.html_page import data_url, write_page

BARS = 24
"""Maximum number of bars of a histogram."""


@dataclass(frozen=True)
class Picture:
    """A sample of the contact sheet."""

    source: str
    """The image as a data URL."""
    location: str
    """Location of the row."""
    caption: str
    """The location without folders."""
    question: str
    answer: str
    alt: str
    """Description for a screen reader."""


@dataclass(frozen=True)
class Bar:
    """Bar of a histogram, in percent of the chart."""

    left: float
    width: float
    height: float
    label: str


def picture(image: Image.Image, location: str, question: str, answer: str, marks: int) -> Picture:
    """Return a picture of an image with `marks` drawn marks, reduced to the size of thumbnails, with its texts."""
    drawn = f", with {marks} boxes or masks drawn" if marks else ""
    caption = location.rsplit("/", 1)[-1]
    return Picture(data_url(image), location, caption, question, answer, f"Image of {caption}{drawn}")


def histogram(values: Sequence[int]) -> list[Bar]:
    """Return the bars of a histogram of integers; an empty list without values."""
    if not values:
        return []
    low, high = min(values), max(values)
    step = max(1, -(-(high - low + 1) // BARS))
    counts = [0] * (-(-(high - low + 1) // step))
    for value in values:
        counts[(value - low) // step] += 1
    width = 100 / len(counts)
    return [
        Bar(number * width, width, 100 * count / max(counts), _label(low + number * step, step, count))
        for number, count in enumerate(counts)
    ]


def _label(start: int, step: int, count: int) -> str:
    end = start + step - 1
    return f"{start} to {end}: {count}" if step > 1 else f"{start}: {count}"


def write_data_page(
    path: Path,
    name: str,
    splits: Sequence[SplitFindings],
    findings: Sequence[Finding],
    sheets: dict[str, list[Picture]],
    notes: Sequence[str],
    max_length: int | None,
) -> None:
    """Write the page.

    Args:
        path: The file.
        name: Name of the config.
        splits: Counts of the splits.
        findings: Rows that a user should look at.
        sheets: Pictures of each split.
        notes: Sentences about information that the page lacks.
        max_length: Maximum number of tokens of a sample; None: unknown.
    """
    write_page(
        path,
        "data.html",
        name=name,
        splits=splits,
        findings=findings,
        sheets=sheets,
        notes=notes,
        max_length=max_length,
        charts={split.name: histogram(split.length_values) for split in splits},
    )
