"""Checks of values against type annotations and bounds, and their wording in messages."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from mllm.errors import hint

NAMES = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "text",
    Path: "text",
    type(None): "None",
}


def fits(value: Any, annotation: Any) -> bool:
    """Return True if a value has the type of an annotation, or if that type is not checked."""
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        kinds = typing.get_args(annotation)
        enums = [kind for kind in kinds if _is_enum(kind)]
        if isinstance(value, str) and enums:
            return any(value in _choices(kind) for kind in enums)
        return any(fits(value, kind) for kind in kinds)
    if origin is Literal:
        return value in typing.get_args(annotation)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is Path:
        return isinstance(value, (str, Path))
    if annotation in (bool, str, type(None)):
        return isinstance(value, annotation)
    if annotation is dict or origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if annotation is list or origin in (list, Sequence):
        return isinstance(value, (list, tuple))
    return True


def format_type(annotation: Any) -> str:
    """Return an annotation in words: 'an integer or None'."""
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        kinds = typing.get_args(annotation)
        if any(map(_is_enum, kinds)):
            kinds = tuple(kind for kind in kinds if kind is not str)
        # None comes last: "an integer or None".
        ordered = sorted(kinds, key=lambda kind: kind is type(None))
        return " or ".join(dict.fromkeys(format_type(kind) for kind in ordered))
    if origin is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(annotation))
    if _is_enum(annotation):
        return "one of " + ", ".join(_choices(annotation))
    if annotation is dict or origin in (dict, Mapping):
        return "a dict"
    if annotation is list or origin in (list, Sequence):
        return "a list"
    return NAMES.get(annotation, "another value")


def invalid_value(value: Any, annotation: Any, unsupported: Container[str] = ()) -> str:
    """Return the end of a message about a value of the wrong type: `must be ..., not '16'`, or the nearest choice.

    Args:
        value: The value.
        annotation: The type that it does not have.
        unsupported: Choices of an enum that are not suggested.
    """
    enums = [kind for kind in (annotation, *typing.get_args(annotation)) if _is_enum(kind)]
    choices = [choice for kind in enums for choice in _choices(kind) if choice not in unsupported]
    if choices and isinstance(value, str):
        return f"does not know '{value}'{hint(value, choices)}"
    return f"must be {format_type(annotation)}, not {value!r}"


def broken_bound(value: Any, bounds: Mapping[str, Any]) -> str | None:
    """Return the bound that a number violates, in words; None if it violates none.

    Args:
        value: Any value; only numbers have bounds.
        bounds: `minimum` and `maximum` (inclusive), `above` and `below` (exclusive); an absent bound does not apply.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    minimum, maximum, above, below = (bounds.get(name) for name in ("minimum", "maximum", "above", "below"))
    # `not >=` instead of `<`, so that NaN violates every bound.
    if minimum is not None and not value >= minimum:
        return f"at least {minimum:g}"
    if maximum is not None and not value <= maximum:
        return f"at most {maximum:g}"
    if above is not None and not value > above:
        return f"greater than {above:g}"
    if below is not None and not value < below:
        return f"less than {below:g}"
    return None


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, enum.Enum)


def _choices(annotation: Any) -> list[str]:
    return [str(member.value) for member in annotation]
