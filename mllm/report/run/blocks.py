"""Parts of a page: a section has a title and blocks, which the template `blocks.html` renders by their `kind`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mllm.report.figures import UNDEFINED, format_number
from mllm.report.run.charts import Chart
from mllm.report.run.gallery import Gallery
from mllm.report.run.pictures import Picture


@dataclass(frozen=True)
class Cell:
    """Cell of a table."""

    text: str
    value: float | int | None = None
    """Exact number that `text` shows rounded, in the attribute `value` of an element `data`. None: no number."""
    is_number: bool = False
    shade: int | None = None
    """Opacity of the background in percent."""


@dataclass(frozen=True)
class Text:
    """Paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    is_muted: bool = False


@dataclass(frozen=True)
class Items:
    """List of texts."""

    kind: ClassVar[str] = "items"
    texts: Sequence[str]


@dataclass(frozen=True)
class Pairs:
    """Terms and their descriptions."""

    kind: ClassVar[str] = "pairs"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Table. The first cell of a row is its heading."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Charts:
    """Charts side by side."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Code:
    """Preformatted text."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Example:
    """Pictures with texts."""

    pictures: Sequence[Picture]
    texts: Sequence[str]


@dataclass(frozen=True)
class Examples:
    """Examples side by side, with a heading."""

    kind: ClassVar[str] = "examples"
    title: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class Cards:
    """Gallery of predictions with its filters."""

    kind: ClassVar[str] = "cards"
    gallery: Gallery
    rules: Sequence[str]
    """Sentences about the meaning of "right"."""
    right: int
    """Number of right answers."""
    wrong: int


@dataclass(frozen=True)
class Details:
    """Blocks that are shown on demand."""

    kind: ClassVar[str] = "details"
    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Columns:
    """Blocks side by side, if the page is wide enough."""

    kind: ClassVar[str] = "columns"
    blocks: Sequence[Any]


Block = Columns | Text | Items | Pairs | Table | Charts | Code | Examples | Cards | Details


@dataclass(frozen=True)
class Section:
    """Section of a report."""

    key: str
    """Its anchor."""
    title: str
    blocks: Sequence[Block]


def number(value: Any, decimals: int = 4) -> Cell:
    """Return a cell of a number with its exact value; `undefined` for None and NaN, which JSON has as null."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return Cell(UNDEFINED if value is None or isinstance(value, float) else str(value), None, is_number=True)
    return Cell(format_number(value, decimals), value, is_number=True)


def key_table(values: Mapping[str, Any], columns: tuple[str, str] = ("key", "value")) -> Table:
    """Return a table of keys and values. Nested keys are joined by points."""
    return Table(columns, [[Cell(key), Cell(text)] for key, text in flat(values)])


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield the keys of nested dicts, joined by points, and the texts of their values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", plain(value)


def plain(value: Any) -> str:
    """Return the text of a value; lists are joined by commas, and numbers have separators of thousands."""
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(part)}" for key, part in value.items())
    return str(value)
