"""Parsers of answers: options, labels, numbers, boxes and JSON.

A parser reads an answer that has the expected form as a whole, or states it (`The answer is B.`). It never searches a
longer text for something that looks like an answer: None is a failure, which metrics count with a penalty.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from typing import Any

STATED = re.compile(r"(?:(?:So t|T|t)he answer is|Answer:) (.+)")
"""Statement of the result in a longer answer, as in Shikra's evaluation of GQA and POPE."""
CLAUSE_END = re.compile(r"[.,;:!?\n]+")
"""End of a clause."""
NONE_WORDS = frozenset({"none", "no finding", "no findings"})
"""Answers without a label or an object, normalized."""
LETTERS = "ABCDEFGHIJKLMNOPQRST"
"""Letters of options."""
Box = tuple[float, float, float, float]
_MARKERS = {letter: re.compile(rf"(?:^|(?<=[\s(,;:.?]))\(?{letter}\s*[:.)](?=\s)", re.MULTILINE) for letter in LETTERS}
"""Letter -> beginning of its option in a question: `A: `, `A. `, `A) ` or `(A) `."""
_OPTION = re.compile(r"[(\[]?([A-Ta-t])[)\]]?")
_LETTERED = re.compile(r"\(?([A-T])[:.)]+\s+(.+)", re.DOTALL)
"""Option with its letter and its text: `B: edema`."""
_NUMBER = re.compile(
    r"([-+\u2212]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?)\s?(\D\S*)?"
)
_UNIT = re.compile(r"%|°C?|(?:[^\W\d_]+(?:\^?[2-4²³])?)(?:[/·](?:[^\W\d_]+(?:\^?[2-4²³])?))*")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)
_LIST_OF_BOXES = re.compile(r"\]\s*[;,]?\s*\[")


def normalize(answer: str) -> str:
    """Normalize an answer for comparison: NFKC, case-folded, single spaces, no final punctuation."""
    text = unicodedata.normalize("NFKC", answer).casefold()
    return " ".join(text.split()).rstrip(".!,;: ")


def stated_result(text: str) -> str | None:
    """Return the normalized result that a text states; None for no result or several different ones."""
    results = {normalize(result) for result in STATED.findall(text)}
    return results.pop() if len(results) == 1 else None


def parse_choice(text: str, choices: Collection[str]) -> str | None:
    """Return the choice that a text states; None for no choice or several.

    A choice is the whole text, a whole clause (`Yes, because ...`) or a stated result (`The answer is yes`). A word
    within a clause is not a choice: neither `No one knows` nor `not yes`.

    Args:
        text: The answer.
        choices: Possible choices, normalized.
    """
    normalized = normalize(text)
    if normalized in choices:
        return normalized
    clauses = {normalize(clause) for clause in CLAUSE_END.split(text)}
    results = {normalize(result) for result in STATED.findall(text)}
    stated = {text for text in clauses | results if text in choices}  # the choices can be very many
    return stated.pop() if len(stated) == 1 else None


def options_in(question: str) -> dict[str, str]:
    """Return the options that a question lists, letter -> text, as in `Options: A: normal B: edema`.

    Letters begin at A and end at T at most. Fewer than two options are none. The last option ends with its line.
    """
    start = max((question.lower().rfind(word) for word in ("options:", "choices:")), default=-1)
    text = question[max(start, 0) :]
    markers: list[re.Match[str]] = []
    for letter in LETTERS:
        position = markers[-1].end() if markers else 0
        match = _MARKERS[letter].search(text, position) if letter in text else None
        if match is None:
            break
        markers.append(match)
    if len(markers) < 2:
        return {}
    ends = [marker.start() for marker in markers[1:]] + [len(text)]
    names = [text[marker.end() : end].strip() for marker, end in zip(markers, ends, strict=True)]
    names[-1] = names[-1].partition("\n")[0]
    return {letter: name.strip(" ,;(\n") for letter, name in zip(LETTERS, names, strict=False)}


def parse_option(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that a text states; None for no option or several.

    Accepted are the letter (`B`, `(B)`, `b.`), the text of an option, both (`B: edema`, if they agree), one of these
    at the beginning of a longer text, before a period, comma, colon or line break, and a stated result. A letter
    within a clause is not an option: `Hepatitis B` states none.

    Args:
        text: The answer.
        options: Letter -> text of the option.
    """
    letter = whole_option(text, options)
    if letter is not None:
        return letter
    statements = STATED.findall(text)
    candidates = statements or [CLAUSE_END.split(text.strip(), maxsplit=1)[0]]
    letters = {whole_option(candidate, options) for candidate in candidates}
    if not statements:
        # Another option that stands alone contradicts the first.
        clauses = CLAUSE_END.split(text)[1:]
        letters |= {other for clause in clauses if (other := whole_option(clause, options, lower=False))}
    return letters.pop() if len(letters) == 1 else None


def whole_option(text: str, options: Mapping[str, str], lower: bool = True) -> str | None:
    """Return the letter of the option that a text is as a whole. `lower`: a small letter is an option, too."""
    stripped = unicodedata.normalize("NFKC", text).strip().rstrip(".!,;: ")
    match = _OPTION.fullmatch(stripped)
    if match and match[1].upper() in options and (lower or match[1].isupper()):
        return match[1].upper()
    lettered = _LETTERED.fullmatch(stripped)
    letter, name = (lettered[1], lettered[2]) if lettered else (None, stripped)
    letters = [key for key, option in options.items() if normalize(option) == normalize(name) and normalize(name)]
    if letter is not None:
        return letter if letter in letters else None
    return letters[0] if len(letters) == 1 else None


def parse_labels(text: str, vocabulary: Collection[str], separator: str | None = None) -> frozenset[str] | None:
    """Return the labels of an answer such as `edema; nodule`, normalized; None if a part is not a label.

    `none`, `no finding` and `no findings` alone are not labels, unless the vocabulary has them.

    Args:
        text: The answer.
        vocabulary: Possible labels, normalized.
        separator: `;`, `,` or `|`. None: the first of these that the text contains.
    """
    stated = STATED.findall(text)
    if stated:
        return parse_labels(stated[0], vocabulary, separator) if len(stated) == 1 else None
    whole = normalize(text)
    if whole in vocabulary:
        return frozenset({whole})
    if whole in NONE_WORDS:
        return frozenset()
    parts = frozenset(split_labels(text, separator))
    return parts if parts and all(part in vocabulary for part in parts) else None


def split_labels(text: str, separator: str | None = None) -> list[str]:
    """Return the normalized parts of a text between separators; see `parse_labels`."""
    return [label for part in split_parts(text, separator) if (label := normalize(part))]


def split_parts(text: str, separator: str | None = None) -> list[str]:
    """Return the parts of a text between separators; see `parse_labels`."""
    return text.split(separator or next((mark for mark in ";|," if mark in text), ";"))


def parse_number(text: str, unit: str = "", minimum: float = -math.inf, maximum: float = math.inf) -> float | None:
    """Return the number that a text is, or states; None for another text, another unit, or a value out of bounds.

    `1,234` has a separator of thousands. A range (`50-60`), a bound (`< 40`) and a number in words are failures.

    Args:
        text: The answer.
        unit: Unit of the value, which the answer may omit.
        minimum: Smallest possible value, in `unit`.
        maximum: Largest possible value.
    """
    parsed = number_and_unit(text)
    if parsed is None or (parsed[1] and _unit_key(parsed[1]) != _unit_key(unit)):
        return None
    return parsed[0] if minimum <= parsed[0] <= maximum else None


def number_and_unit(text: str) -> tuple[float, str] | None:
    """Return the finite number that a text is, or states, and its unit ('' without one)."""
    stated = STATED.findall(text)
    if len(stated) > 1:
        return None
    plain = unicodedata.normalize("NFKC", stated[0] if stated else text).strip()
    match = _NUMBER.fullmatch(plain[:-1] if plain.endswith(".") else plain)
    if match is None or (match[2] and not _is_unit(match[2])):
        return None
    value = float(match[1].replace("\u2212", "-").replace(",", ""))
    return (value, match[2] or "") if math.isfinite(value) else None


def _is_unit(text: str) -> bool:
    """Return True for the form of a unit: `%`, `mm`, `mL/m2`, `°`."""
    return _UNIT.fullmatch(text) is not None


def _unit_key(unit: str) -> str:
    """Return a unit for comparison, with one letter for micro; prefixes keep their case (`mm` is not `Mm`)."""
    return unicodedata.normalize("NFKC", unit).replace("\u03bc", "u").replace("\u00b5", "u").strip()


def parse_json(text: str) -> Any:
    """Return the JSON value that a text is, alone or in a fence of code; None for anything else.

    Keys of an object must differ. Infinity and NaN, which JSON lacks, are refused.
    """
    stripped = text.strip()
    fenced = _FENCE.fullmatch(stripped)
    try:
        return json.loads(
            fenced[1] if fenced else stripped, object_pairs_hook=_distinct, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError):  # also a whole number of more than 4,300 digits, and deep nesting
        return None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def parse_boxes(text: str) -> list[Box] | None:
    """Return the boxes x1 y1 x2 y2 that an answer lists; None if it is anything else.

    Accepted are one box `[x1, y1, x2, y2]`, boxes one after the other (also with `;` or `,` between them), and a list
    of boxes in JSON. `none` is an empty list. A box without an area, or with corners in another order, is a failure.
    """
    stated = STATED.findall(text)
    if stated:
        return parse_boxes(stated[0]) if len(stated) == 1 else None
    if normalize(text) in NONE_WORDS:
        return []
    stripped = text.strip().rstrip(".")
    value = parse_json(stripped)
    if value is None and stripped.startswith("["):
        value = parse_json("[" + _LIST_OF_BOXES.sub("],[", stripped) + "]")
    if not isinstance(value, list):
        return None
    boxes = [value] if value and not isinstance(value[0], list) else value
    parsed = [_box(box) for box in boxes]
    return None if None in parsed else [box for box in parsed if box is not None]


def parse_instances(text: str) -> dict[str, list[Box]] | None:
    """Return the boxes of each identity in an answer `{"1": [[x1, y1, x2, y2], ...], ...}`; None for another text."""
    value = parse_json(text)
    if not isinstance(value, dict):
        return None
    instances: dict[str, list[Box]] = {}
    for name, boxes in value.items():
        if not isinstance(boxes, list):
            return None
        nested = [boxes] if boxes and not isinstance(boxes[0], list) else boxes
        parsed = [_box(box) for box in nested]
        if None in parsed:
            return None
        instances[name.strip()] = [box for box in parsed if box is not None]
    return instances


def _box(value: Any) -> Box | None:
    """Return a box from a list of four finite numbers with x1 < x2 and y1 < y2."""
    if not isinstance(value, list) or len(value) != 4 or not all(_numbers(value)):
        return None
    x1, y1, x2, y2 = map(float, value)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _numbers(values: list[Any]) -> Iterator[bool]:
    """Yield True for each number of a moderate size; a whole number of JSON can be too large for a float."""
    for value in values:
        yield isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
