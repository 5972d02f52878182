"""How boxes and points stand in a text: as numbers, as tokens of their own, or as one token that heads read."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from mllm.errors import ConfigError
from mllm.registry import BOX_FORMATS
from mllm.structures import BOX

Numbers = tuple[float, ...]
"""x1 y1 x2 y2 of a box or x y of a point, as shares of what the model sees, in [0, 1]."""


class BoxFormat(ABC):
    """Writes boxes and points into a text, and reads them out of one.

    What is written or read is clipped to [0, 1]; what is read has its corners in order. Reading never raises.
    """

    needs_heads: ClassVar[bool] = False
    object_token: ClassVar[str | None] = None
    """The token that stands for one object, where heads read it."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The special tokens that the tokenizer needs."""
        return ()

    @abstractmethod
    def write(self, places: Sequence[Numbers], size: int) -> str:
        """The text of some boxes (`size` 4) or points (`size` 2), none perhaps."""

    @abstractmethod
    def read(self, text: str) -> tuple[list[Numbers], int]:
        """The boxes and points of a text in its order, and how many places in it could not be read."""

    def write_boxes(self, boxes: Sequence[Numbers]) -> str:
        """The text of some boxes."""
        return self.write(boxes, 4)

    def write_points(self, points: Sequence[Numbers]) -> str:
        """The text of some points."""
        return self.write(points, 2)

    def read_boxes(self, text: str) -> tuple[list[Numbers], int]:
        """The boxes of a text, and how many places in it could not be read."""
        places, unreadable = self.read(text)
        return [place for place in places if len(place) == 4], unreadable

    def read_points(self, text: str) -> tuple[list[Numbers], int]:
        """The points of a text, and how many places in it could not be read."""
        places, unreadable = self.read(text)
        return [place for place in places if len(place) == 2], unreadable

    def plain(self, text: str) -> str:
        """The text as a person reads it."""
        return text


@BOX_FORMATS.register_module(name="normalized_text")
class NormalizedText(BoxFormat):
    """Numbers with `precision` decimals: `[0.100,0.250,0.480,0.760;...]`, as Shikra writes them (arXiv:2306.15195)."""

    LOWEST, HIGHEST = -1.0, 1.5
    """Numbers beyond are no shares that went astray but something else: pixels, counts, years."""
    DECIMAL = r"[-+]?\d*\.\d+"
    PLACE = re.compile(rf"\[(?P<inside>[^\[\]]*)(?P<end>\]?)|(?P<bare>{DECIMAL}(?:\s*[,;]\s*{DECIMAL}){{3,}})")
    BEGINS = re.compile(r"\s*[-+.]?\s*\d")

    def __init__(self, precision: int = 3) -> None:
        if not 1 <= precision <= 6:
            raise ConfigError(f"box_format normalized_text: precision must be from 1 to 6, not {precision}")
        self.precision = precision

    def write(self, places: Sequence[Numbers], size: int) -> str:
        """`[x,y,x,y;x,y,x,y]`."""
        return "[" + ";".join(",".join(f"{_clipped(x):.{self.precision}f}" for x in place) for place in places) + "]"

    def read(self, text: str) -> tuple[list[Numbers], int]:
        """Every group of four or two numbers between brackets, and every four decimals without brackets."""
        found: list[Numbers] = []
        unreadable = 0
        for match in self.PLACE.finditer(text):
            inside, is_closed, is_bare = match["inside"], bool(match["end"]), match["bare"] is not None
            if not is_bare and not self.BEGINS.match(inside):
                # A remark in brackets, an empty list, or a text that was cut right behind the bracket.
                unreadable += not is_closed and not inside.strip()
                continue
            group = match["bare"] or (inside if is_closed else self._opened(inside, match.end() == len(text)))
            # Two numbers without both brackets may be half a box.
            sizes = (2, 4) if is_closed else (4,)
            for part in group.split(";"):
                numbers = _numbers(part)
                if len(numbers) in sizes and all(self.LOWEST <= number <= self.HIGHEST for number in numbers):
                    found.append(_ordered(numbers))
                else:
                    unreadable += not is_bare
        return found, unreadable

    def _opened(self, inside: str, is_end: bool) -> str:
        """The numbers behind a bracket that nothing closes, without the last place where it may have been cut."""
        numbers = re.match(r"[\d\s.,;+-]*", inside)
        assert numbers is not None
        if not is_end or numbers[0] != inside:
            return numbers[0].rstrip(" \n.,")
        whole = re.match(rf"(?:.*\.\d{{{self.precision},}}(?=[\s.]*$)|.*;|)", inside, re.DOTALL)
        assert whole is not None
        return whole[0]


@BOX_FORMATS.register_module(name="location_tokens")
class LocationTokens(BoxFormat):
    """A token for each of `num_bins` positions along an axis: `<b_st><bin_100><bin_250>...<b_ed>`."""

    MARKS: ClassVar[dict[int, tuple[str, str, str]]] = {
        4: ("<b_st>", "<b_sep>", "<b_ed>"),
        2: ("<p_st>", "<p_sep>", "<p_ed>"),
    }
    TOKEN = re.compile(r"<(?:([bp])_(st|sep|ed)|bin_([0-9]{1,9}))>")

    def __init__(self, num_bins: int = 1001) -> None:
        if num_bins < 2:
            raise ConfigError(f"box_format location_tokens: num_bins must be at least 2, not {num_bins}")
        self.num_bins = num_bins

    @property
    def tokens(self) -> tuple[str, ...]:
        """The bins, and what begins, divides and ends boxes and points."""
        marks = [token for size in (4, 2) for token in self.MARKS[size]]
        return (*(f"<bin_{number}>" for number in range(self.num_bins)), *marks)

    def write(self, places: Sequence[Numbers], size: int) -> str:
        """The nearest bins, between the tokens for this kind."""
        start, between, end = self.MARKS[size]
        bins = ["".join(f"<bin_{round(_clipped(x) * (self.num_bins - 1))}>" for x in place) for place in places]
        return start + between.join(bins) + end

    def read(self, text: str) -> tuple[list[Numbers], int]:
        """Every four bins, or two after `<p_st>`, whether or not the tokens around them are there."""
        found: list[Numbers] = []
        unreadable, size, bins = 0, 4, list[int]()
        expected = False
        """Whether a place must stand here: a group was begun, or divided."""
        for kind, role, number in [*self.TOKEN.findall(text), ("", "", "")]:
            if number:
                bins.append(int(number))
                continue
            is_empty_group = role == "ed" and not bins
            if len(bins) == size and max(bins) < self.num_bins:
                found.append(_ordered(tuple(number / (self.num_bins - 1) for number in bins)))
            elif bins or (expected and not is_empty_group):
                unreadable += 1
            bins, expected = [], role in ("st", "sep")
            size = 2 if kind == "p" and expected else 4
        return found, unreadable


@BOX_FORMATS.register_module(name="perception_token")
class PerceptionToken(BoxFormat):
    """One token for each object, read by the model's heads: `<obj_vis_s><loc>;<loc><obj_vis_e>` (arXiv:2311.06612)."""

    needs_heads = True
    object_token = "<loc>"
    START, END = "<obj_vis_s>", "<obj_vis_e>"
    GROUP = re.compile(rf"{START}\s*(?:{object_token}[\s;]*)*(?:{END})?|{object_token}(?:\s*;\s*{object_token})*|{END}")

    @property
    def tokens(self) -> tuple[str, ...]:
        """The token of an object, and what stands around some of them."""
        return (self.object_token, self.START, self.END)

    def write(self, places: Sequence[Numbers], size: int) -> str:
        """As many object tokens as there are places; where they are, only the heads know."""
        return self.START + ";".join([self.object_token] * len(places)) + self.END

    def read(self, text: str) -> tuple[list[Numbers], int]:
        """Nothing: the places are not in the text."""
        return [], 0

    def plain(self, text: str) -> str:
        """The text with `<box>` where objects stand."""
        return self.GROUP.sub(lambda match: "" if match[0] == self.END else BOX, text)


def _clipped(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _numbers(text: str) -> Numbers:
    """The numbers between commas; none where there is anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()


def _ordered(place: Numbers) -> Numbers:
    """A place within [0, 1], a box with its upper left corner first."""
    place = tuple(_clipped(share) for share in place)
    if len(place) == 2:
        return place
    x1, y1, x2, y2 = place
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
