"""Whether a value fits a type annotation, and what to call that annotation in a sentence."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from mllm.errors import hint

NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text", Path: "text", type(None): "None"}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value may stand where the annotation does; what we cannot judge is left to the library."""
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


def described(annotation: Any) -> str:
    """An annotation in words: 'a whole number or None'."""
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        kinds = typing.get_args(annotation)
        if any(map(_is_enum, kinds)):
            kinds = tuple(kind for kind in kinds if kind is not str)
        # None reads best at the end: "a whole number or None".
        return " or ".join(
            dict.fromkeys(described(kind) for kind in sorted(kinds, key=lambda kind: kind is type(None)))
        )
    if origin is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(annotation))
    if _is_enum(annotation):
        return "one of " + ", ".join(_choices(annotation))
    if annotation is dict or origin in (dict, Mapping):
        return "a dict"
    if annotation is list or origin in (list, Sequence):
        return "a list"
    return NAMES.get(annotation, "another value")


def wrong_value(value: Any, annotation: Any) -> str:
    """The tail of a sentence about a value that does not fit: `must be ..., not '16'`, or the nearest known name."""
    choices = [
        choice for kind in (annotation, *typing.get_args(annotation)) if _is_enum(kind) for choice in _choices(kind)
    ]
    if choices and isinstance(value, str):
        return f"does not know '{value}'{hint(value, choices)}"
    return f"must be {described(annotation)}, not {value!r}"


def limited(value: Any, limits: Mapping[str, Any]) -> str | None:
    """The bound that a number breaks, in words; None where it breaks none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    minimum, above, below = limits.get("minimum"), limits.get("above"), limits.get("below")
    # Written so that a NaN breaks every bound.
    if minimum is not None and not value >= minimum:
        return f"at least {minimum:g}"
    if above is not None and not value > above:
        return f"greater than {above:g}"
    if below is not None and not value < below:
        return f"less than {below:g}"
    return None


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, enum.Enum)


def _choices(annotation: Any) -> list[str]:
    return [str(member.value) for member in annotation]
