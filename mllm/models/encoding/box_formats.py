"""Text formats of boxes and points: numbers, location tokens, or one object token that the heads decode."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from mllm.errors import ConfigError
from mllm.registry import BOX_FORMATS
from mllm.structures import BOX

Numbers = tuple[float, ...]
"""x1 y1 x2 y2 of a box or x y of a point, as fractions of the model's input, in [0, 1]."""


class BoxFormat(ABC):
    """Format of boxes and points in a text.

    Coordinates are clipped to [0, 1] when they are written and read. The corners of a box that is read are sorted.
    Reading never raises.
    """

    needs_heads: ClassVar[bool] = False
    object_token: ClassVar[str | None] = None
    """Token that represents one object and is decoded by the heads."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return the special tokens that the tokenizer needs."""
        return ()

    @abstractmethod
    def write(self, locations: Sequence[Numbers], size: int) -> str:
        """Return the text of boxes (`size` 4) or points (`size` 2). The sequence may be empty."""

    @abstractmethod
    def read(self, text: str) -> tuple[list[Numbers], int]:
        """Return the boxes and points in a text, in order, and the number that could not be parsed."""

    def write_boxes(self, boxes: Sequence[Numbers]) -> str:
        """Return the text of boxes."""
        return self.write(boxes, 4)

    def write_points(self, points: Sequence[Numbers]) -> str:
        """Return the text of points."""
        return self.write(points, 2)

    def read_boxes(self, text: str) -> tuple[list[Numbers], int]:
        """Return the boxes in a text, and the number of boxes and points that could not be parsed."""
        locations, unreadable = self.read(text)
        return [location for location in locations if len(location) == 4], unreadable

    def read_points(self, text: str) -> tuple[list[Numbers], int]:
        """Return the points in a text, and the number of boxes and points that could not be parsed."""
        locations, unreadable = self.read(text)
        return [location for location in locations if len(location) == 2], unreadable

    def plain(self, text: str) -> str:
        """Return the text in readable form."""
        return text


@BOX_FORMATS.register_module(name="normalized_text")
class NormalizedText(BoxFormat):
    """Numbers with `precision` decimals: `[0.100,0.250,0.480,0.760;...]`, as Shikra writes them (arXiv:2306.15195)."""

    LOWEST, HIGHEST = -1.0, 1.5
    """Numbers outside this range are not coordinates but pixels, counts or years."""
    DECIMAL = r"[-+]?\d*\.\d+"
    LOCATION = re.compile(rf"\[(?P<inside>[^\[\]]*)(?P<end>\]?)|(?P<bare>{DECIMAL}(?:\s*[,;]\s*{DECIMAL}){{3,}})")
    NUMBER_START = re.compile(r"\s*[-+.]?\s*\d")

    def __init__(self, precision: int = 3) -> None:
        if not 1 <= precision <= 6:
            raise ConfigError(f"box_format normalized_text: precision must be from 1 to 6, not {precision}")
        self.precision = precision

    def write(self, locations: Sequence[Numbers], size: int) -> str:
        """Return `[x,y,x,y;x,y,x,y]`."""
        return (
            "["
            + ";".join(",".join(f"{_clipped(x):.{self.precision}f}" for x in numbers) for numbers in locations)
            + "]"
        )

    def read(self, text: str) -> tuple[list[Numbers], int]:
        """Parse all groups of four or two numbers in brackets, and all groups of four decimals without brackets."""
        locations: list[Numbers] = []
        unreadable = 0
        for match in self.LOCATION.finditer(text):
            inside, is_closed, is_bare = match["inside"], bool(match["end"]), match["bare"] is not None
            if not is_bare and not self.NUMBER_START.match(inside):
                # A comment in brackets, an empty list, or a text that was cut after the opening bracket.
                unreadable += not is_closed and not inside.strip()
                continue
            group = match["bare"] or (inside if is_closed else self._unclosed_group(inside, match.end() == len(text)))
            # Two numbers without a closing bracket may be half a box.
            sizes = (2, 4) if is_closed else (4,)
            for part in group.split(";"):
                numbers = _numbers(part)
                if len(numbers) in sizes and all(self.LOWEST <= number <= self.HIGHEST for number in numbers):
                    locations.append(_ordered(numbers))
                else:
                    unreadable += not is_bare
        return locations, unreadable

    def _unclosed_group(self, inside: str, is_end: bool) -> str:
        """Return the numbers after a bracket that is not closed, without a last group that may be cut."""
        numbers = re.match(r"[\d\s.,;+-]*", inside)
        assert numbers is not None
        if not is_end or numbers[0] != inside:
            return numbers[0].rstrip(" \n.,")
        complete = re.match(rf"(?:.*\.\d{{{self.precision},}}(?=[\s.]*$)|.*;|)", inside, re.DOTALL)
        assert complete is not None
        return complete[0]


@BOX_FORMATS.register_module(name="location_tokens")
class LocationTokens(BoxFormat):
    """One token for each of `num_bins` positions along an axis: `<b_st><bin_100><bin_250>...<b_ed>`."""

    MARKS: ClassVar[dict[int, tuple[str, str, str]]] = {
        4: ("<b_st>", "<b_sep>", "<b_ed>"),
        2: ("<p_st>", "<p_sep>", "<p_ed>"),
    }
    TOKEN = re.compile(r"<(?:([bp])_(st|sep|ed)|bin_([0-9]{1,9}))>")

    adds_tokens = True
    """True if the format adds tokens to the vocabulary, whose embeddings are trained."""

    def __init__(self, num_bins: int = 1001) -> None:
        if num_bins < 2:
            raise ConfigError(f"box_format location_tokens: num_bins must be at least 2, not {num_bins}")
        self.num_bins = num_bins

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return the bin tokens, and the tokens that start, separate and end boxes and points."""
        marks = [token for size in (4, 2) for token in self.MARKS[size]]
        return (*(f"<bin_{number}>" for number in range(self.num_bins)), *marks)

    def write(self, locations: Sequence[Numbers], size: int) -> str:
        """Return the nearest bins between start and end token."""
        start, between, end = self.MARKS[size]
        bins = ["".join(f"<bin_{round(_clipped(x) * (self.num_bins - 1))}>" for x in numbers) for numbers in locations]
        return start + between.join(bins) + end

    def read(self, text: str) -> tuple[list[Numbers], int]:
        """Parse all groups of four bins, or two after `<p_st>`, with or without start and end tokens."""
        locations: list[Numbers] = []
        unreadable, size, bins = 0, 4, list[int]()
        expected = False
        """True after a start or separator token, which a box or point must follow."""
        for kind, role, number in [*self.TOKEN.findall(text), ("", "", "")]:
            if number:
                bins.append(int(number))
                continue
            is_empty_group = role == "ed" and not bins
            if len(bins) == size and max(bins) < self.num_bins:
                locations.append(_ordered(tuple(number / (self.num_bins - 1) for number in bins)))
            elif bins or (expected and not is_empty_group):
                unreadable += 1
            bins, expected = [], role in ("st", "sep")
            size = 2 if kind == "p" and expected else 4
        return locations, unreadable


@BOX_FORMATS.register_module(name="perception_token")
class PerceptionToken(BoxFormat):
    """One token per object, decoded by the heads: `<obj_vis_s><loc>;<loc><obj_vis_e>` (arXiv:2311.06612)."""

    needs_heads = True
    object_token = "<loc>"
    START, END = "<obj_vis_s>", "<obj_vis_e>"
    GROUP = re.compile(rf"{START}\s*(?:{object_token}[\s;]*)*(?:{END})?|{object_token}(?:\s*;\s*{object_token})*|{END}")

    adds_tokens = True

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return the object token, and the tokens before and after a group."""
        return (self.object_token, self.START, self.END)

    def write(self, locations: Sequence[Numbers], size: int) -> str:
        """Return one object token per location. The coordinates are embedded by the heads."""
        return self.START + ";".join([self.object_token] * len(locations)) + self.END

    def read(self, text: str) -> tuple[list[Numbers], int]:
        """Return no location: the coordinates are not in the text."""
        return [], 0

    def plain(self, text: str) -> str:
        """Return the text with `<box>` in place of object tokens."""
        return self.GROUP.sub(lambda match: "" if match[0] == self.END else BOX, text)


def _clipped(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _numbers(text: str) -> Numbers:
    """Return the numbers between commas, or none if a part is not a number."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()


def _ordered(numbers: Numbers) -> Numbers:
    """Return a location clipped to [0, 1], a box with its upper left corner first."""
    numbers = tuple(_clipped(value) for value in numbers)
    if len(numbers) == 2:
        return numbers
    x1, y1, x2, y2 = numbers
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
