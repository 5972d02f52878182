"""Contents of answers that metrics read: texts, boxes, masks and measures, and the text form of measures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from mllm.parsing import number_and_unit, parse_boxes, parse_instances
from mllm.structures import Answer, Mark, Sample

Content = Literal["text", "box", "mask", "measures", "number", "objects", "instances"]
"""Part of an answer: a text, a box, a mask, a measure with a value (in a field, or stated in the text), a text that is
a number, boxes (as marks, or listed in the text), or boxes by identity in JSON."""
_NO_RANGE = r"(?![\w/]|\s?(?:[-\u2013\u00b1]|\+/?-|to)\s?\d|\s?(?:or|and)\s?\d+(?:\.\d+)?\s?{unit})"
"""Pattern behind the unit of a value that is neither part of another unit nor the beginning of a range. A number after
"and" belongs to a range if it has the same unit: "EF 58 % and 2 infarcts" states a value."""
UNITS = {"EF": "%", "EDV": "mL", "ESV": "mL"}
"""Units of measures by name: ejection fraction, end-diastolic and end-systolic volume."""
_STATED = {
    name: re.compile(
        rf"(?<!\w){name}\s*(?:[:=]|is|of|was)?\s*([-+\u2212]?\d{{1,5}}(?:\.\d+)?)\s?{re.escape(unit)}"
        + _NO_RANGE.replace("{unit}", re.escape(unit))
    )
    for name, unit in UNITS.items()
}
"""Patterns of measures with their value and unit in a text, by name."""


def reference_of(sample: Sample) -> Answer:
    """Return the last assistant turn of a sample with its marks, and the measures of the sample."""
    if not sample.turns or sample.turns[-1].role != "assistant":
        return Answer("", measures=sample.measures, group=sample.group, task=sample.task)
    turn = sample.turns[-1]
    marks = tuple(sample.marks[index] for group in turn.marks for index in group if index < len(sample.marks))
    return Answer(turn.text, marks, measures=sample.measures, group=sample.group, task=sample.task)


def contents_of(answer: Answer) -> set[Content]:
    """Return the contents of an answer. A mask with a pixel is also a box, its bounding box."""
    contents: set[Content] = set()
    if answer.text.strip():
        contents.add("text")
    for mark in answer.marks:
        if mark.mask is not None or mark.undecoded is not None:
            contents.add("mask")
        if mark.box is not None or ("box" not in contents and _has_pixels(mark)):
            contents.add("box")
    if answer.measures and any(map(math.isfinite, answer.measures.values())):
        contents.add("measures")
    if "box" in contents:
        contents.add("objects")
    return contents | (_short_contents if len(answer.text) < _SHORT else _parsed_contents)(answer.text)


def _has_pixels(mark: Mark) -> bool:
    """Return True if a mark has a mask that is not known to be empty."""
    return mark.undecoded is not None or (mark.mask is not None and bool(mark.mask.any()))


def _parsed_contents(text: str) -> frozenset[Content]:
    """Return the contents that the parsers find in a text. Longer texts are not parsed: they are not numbers."""
    contents: set[Content] = {"measures"} if stated_measures(text) else set()
    start = text.lstrip()[:1]
    if start in ("{", "`"):
        contents |= {"instances"} if parse_instances(text) is not None else set()
    elif start == "[":
        contents |= {"objects"} if parse_boxes(text) else set()
    elif len(text) < _SHORT and number_and_unit(text) is not None:
        contents.add("number")
    return frozenset(contents)


_SHORT = 64
"""Length from which a text is no number."""
_short_contents = lru_cache(maxsize=1024)(_parsed_contents)
"""Contents of short answers, which often repeat."""


def measure_value(name: str, value: float) -> str:
    """Return a measure with its unit: `58.4 %`, or `unknown` for NaN."""
    return "unknown" if math.isnan(value) else f"{value:.1f} {UNITS.get(name, '')}".rstrip()


def measures_text(values: Mapping[str, float]) -> str:
    """Return the known measures as text with their units: `EF 58.4 %, EDV 120.1 mL`. NaN is an unknown measure."""
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    return ", ".join(f"{name} {measure_value(name, value)}" for name, value in known.items())


def stated_measures(text: str) -> dict[str, float]:
    """Return the measures that a text states with their unit; the first value of each (`EF 58.4 %`, `EF is -5 %`).

    A range (`EF 50-60 %`, `EF 50 % to 60 %`), a bound (`EF < 40 %`), a value in another unit (`EDV 60 mL/m2`) and one
    of more than five digits, as a model that repeats a digit writes, state no measure.
    """
    matches = ((name, pattern.search(text)) for name, pattern in _STATED.items() if name in text)
    return {name: float(match[1].replace("\u2212", "-")) for name, match in matches if match}
