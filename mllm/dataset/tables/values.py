"""Values of a row: definitions of an empty value, a text and a patient, shared by all datasets."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from functools import lru_cache
from typing import Any, Literal

from mllm.errors import DataError, hint
from mllm.structures import Sample

AnswerChoice = Literal["first", "majority"]

_MISSING = frozenset(
    (
        *("nan", "NaN", "<NA>", "NaT", "NA", "\\N", "NULL", "Null", "null", "(null)", "N/A", "n/a"),
        *("#N/A", "#NA", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NUM!", "#NULL!", "#SPILL!", "#CALC!"),
    )
)
"""Texts of missing values that pandas, R (NA) and databases (NULL) write or that `str` makes of them, and errors of
Excel. None, none, unknown and na are texts: they can be answers."""
_INTEGER = re.compile(r"(-?\d+)\.0+")
"""Integer as pandas writes it in a column with missing values."""
_LAST_NUMBER = re.compile(r"(|.*\D)0*(\d+)", re.DOTALL)
"""Text that ends in a number, with the zeros before it."""
_SEPARATOR = re.compile(r"(?<=[^\W\d_])[\s_.-]+(?=\d)")
"""Characters between a letter and a number, such as that of `P-7`. Those between two numbers divide them."""
_ROUNDED = re.compile(r"-?\d(\.\d+)?[eE]\+\d+")
"""Large integer as Excel shows it: `1.23457E+11`, and in a narrow column `1E+11`."""
_EXACT = 2**53
"""Integers from which a float has lost digits."""
_NO_PATIENT = frozenset(
    (
        *("none", "na", "unknown", "missing", "not available", "not applicable", "unspecified", "-", "--", "?"),
        *("anonymous", "anonymized", "anonymised"),
    )
)
"""Texts in place of the id of a patient, in lower case. As an answer they are a text."""
_PATIENT_COLUMNS = re.compile(
    r"(anon|anonymized|deid|hashed)?"
    r"(patients?(id|ids|name|number|num|no|nr|key|uid|code|hash)?|(subject|subj|participant|person|pat|pt)"
    r"(id|number|num|no|nr|key|code)|subj|participant|pid|mrn|empi(anon)?)|id(patient|subject)"
)
"""Names of columns that probably hold the patient, in lower case without separators."""


def is_empty(value: Any) -> bool:
    """Return True for None, NaN, blank text, the text of a missing value (`NULL`), and a container without items."""
    if isinstance(value, str):
        return not value or value.isspace() or value.strip() in _MISSING or not (value.isascii() or _visible(value))
    if isinstance(value, float):
        return math.isnan(value)
    if value is None:
        return True
    return isinstance(value, Sized) and len(value) == 0


def _explained(value: Any) -> str:
    """Return the reason why a text that is not blank is empty; no text for other empty values."""
    is_name = isinstance(value, str) and value.strip() in _MISSING
    return ": its text stands for a missing value, as NULL, NA, N/A and nan do" if is_name else ""


def _visible(text: str) -> str:
    """Return a text without white space around it and without characters of no width, such as U+200B and U+FEFF."""
    return "".join(character for character in text if unicodedata.category(character) != "Cf").strip()


def text_of(value: Any, field: str) -> str:
    """Return the text of a field: a text unchanged, a number or a truth value as JSON writes it.

    Raises:
        DataError: The value is empty, is neither text nor number, has a NUL character or half of a surrogate pair.
    """
    if is_empty(value):
        raise DataError.without_values(f"field '{field}' is empty{_explained(value)}")
    if isinstance(value, str):
        check_characters(value, f"field '{field}'")
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)  # `isfinite` fails for an integer that no float can hold
    raise DataError.without_values(f"field '{field}' is not a text")


def check_characters(text: str, name: str) -> None:
    """Raise `DataError` for characters that no text has: NUL, and half of a surrogate pair.

    A NUL comes from binary data or a column of fixed width; programs in C, such as llama.cpp, end a text there.

    Args:
        text: The text.
        name: Its name in the message.
    """
    fault, position = "a NUL character", text.find("\0")
    if position < 0 and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            fault, position = f"half of a surrogate pair (U+{ord(text[error.start]):04X})", error.start
    if position >= 0:
        raise DataError.without_values(f"{name} has {fault} at character {position + 1}: remove it")


def choose_answer(answers: Sequence[Any], choice: AnswerChoice | None, field: str) -> str:
    """Return one of the answers of several annotators; empty ones do not count.

    Args:
        answers: Texts or numbers.
        choice: 'first', or 'majority': the most frequent answer, the earliest of equally frequent ones. None: the
            answers must be equal.
        field: Name of the field, for messages.

    Raises:
        DataError: The answers differ and `choice` is None, or all answers are empty.
    """
    texts = [text_of(answer, field) for answer in answers if not is_empty(answer)]
    if not texts:
        raise DataError.without_values(f"field '{field}' is empty")
    if choice is None and len(set(texts)) > 1:
        raise DataError.without_values(
            f"field '{field}' has {len(texts)} answers, but only one can be learned: set choose_answer='majority' or "
            "'first' in the dataset, or keep one answer"
        )
    return texts[0] if choice == "first" else Counter(texts).most_common(1)[0][0]


def patient_of(value: Any, field: str) -> str | None:
    """Return the patient of a field in one form, None if it is empty or a text such as `unknown`.

    17, 17.0, '17' and '17.0 ' are one patient, and so are texts that differ in white space around them, in characters
    of no width, or in the Unicode form of a letter.

    Raises:
        DataError: The value cannot be the id of a patient.
    """
    if is_empty(value):
        return None
    if isinstance(value, str):
        return _patient_of_text(value, field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    raise DataError.without_values(
        f"field '{field}' must be the id of a patient, a text or an integer, not {_kind(value)}"
    )


@lru_cache(maxsize=64)  # a row is read several times, and adjacent rows often have one patient
def _patient_of_text(value: str, field: str) -> str | None:
    check_characters(value, f"field '{field}'")
    text = value if value.isascii() else unicodedata.normalize("NFC", _visible(value))
    text = " ".join(text.split())
    if text.lower() in _NO_PATIENT:
        return None
    if _ROUNDED.fullmatch(text):
        raise DataError.without_values(
            f"field '{field}' must be the id of a patient, and has a large number of which Excel kept some digits "
            "(such as 1.2E+11): write the column as text"
        )
    integer = _INTEGER.fullmatch(text)
    return integer[1] if integer else text


def number_in(value: Any) -> float:
    """Return the number that a field is, or has as text; NaN for others, such as True, and 1_0, which Python reads."""
    try:
        return math.nan if isinstance(value, bool) or (isinstance(value, str) and "_" in value) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _kind(value: Any) -> str:
    """Return the kind of a value, without the value, which may identify a patient."""
    if isinstance(value, float):
        return "a large number that has lost digits" if abs(value) >= _EXACT else "a number with a fraction"
    return f"a {type(value).__name__}"


def loose_form(patient: str) -> str:
    """Return the id of a patient without case, widths of letters, zeros before its last number, and separators between
    a letter and a number (`P007`, `P7` and `p-7`).

    Two ids have the same form if they may be spellings of one. Ids of equal length differ in more than zeros.
    """
    form = (patient if patient.isascii() else unicodedata.normalize("NFKC", patient)).casefold()
    form = _SEPARATOR.sub("", form)
    number = _LAST_NUMBER.fullmatch(form)
    return f"{number[1]}{number[2]}" if number else form


def patient_columns(names: Iterable[str]) -> list[str]:
    """Return the columns that probably hold the patient, such as `Patient ID` and `subject_id`."""
    return [name for name in names if _PATIENT_COLUMNS.fullmatch(re.sub(r"[^a-z]", "", name.lower()))]


def modality_of(row: Mapping[str, Any]) -> str | None:
    """Return the field `modality` of a row as text; None if it is absent or empty."""
    value = row.get("modality")
    return None if is_empty(value) else str(value)


def missing_field(name: str, row: Mapping[str, Any]) -> str:
    """Return the message about a field that a row does not have, with a similar name that it has."""
    return f"field '{name}' is missing{hint(name, map(str, row))}"


def check_groups(sample: Sample, source: str) -> None:
    """Raise `DataError` if a text refers to a box or point that the sample does not have, or to none."""
    for turn in sample.turns:
        for group in turn.marks:
            if not group:
                raise DataError.at(source, "a place in the text has no box or point: name one, or remove the place")
            for index in group:
                if not 0 <= index < len(sample.marks):
                    number = len(sample.marks)
                    fault = "the text refers to a box or point that the row does not have"
                    raise DataError(f"{source}: {fault}: number {index} of {number}, counted from 0", fault)
