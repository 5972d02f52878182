"""The page `data.html`: one file without references to other files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from mllm.files import replaced_file
from mllm.report.data.findings import Finding, SplitFindings

THUMBNAIL = 320
"""Maximum longer side of a picture in pixels."""
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
    """Return a picture of an image with `marks` drawn marks, reduced to `THUMBNAIL` pixels, with its texts."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    drawn = f", with {marks} boxes or masks drawn" if marks else ""
    source, caption = f"data:image/jpeg;base64,{data}", location.rsplit("/", 1)[-1]
    return Picture(source, location, caption, question, answer, f"Image of {caption}{drawn}")


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


def write_page(
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
    environment = Environment(
        loader=PackageLoader("mllm.report.data", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = {split.name: histogram(split.length_values) for split in splits}
    html = environment.get_template("page.html").render(
        name=name,
        splits=splits,
        findings=findings,
        sheets=sheets,
        notes=notes,
        max_length=max_length,
        charts=charts,
    )
    with replaced_file(path) as file:
        file.write(html)
