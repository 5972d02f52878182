"""Conversion of config values to Python source."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any

WIDTH = 110
"""Maximum number of characters of a value on one line."""


def source_of(value: Any, indent: int = 0) -> str:
    """Return Python source that evaluates to `value`.

    Values are None, bools, numbers, strings, and lists, tuples and dicts of these.
    """
    flat = _flat(value)
    if len(flat) + indent <= WIDTH and not (isinstance(value, Mapping) and value):
        return flat
    pad = " " * (indent + 4)
    if isinstance(value, Mapping):
        is_keywords = _are_keywords(value)
        lines = [
            f"{pad}{key}={source_of(child, indent + 4)},"
            if is_keywords
            else f"{pad}{key!r}: {source_of(child, indent + 4)},"
            for key, child in value.items()
        ]
        left, right = ("dict(", ")") if is_keywords else ("{", "}")
    elif isinstance(value, (list, tuple)):
        lines = [f"{pad}{source_of(child, indent + 4)}," for child in value]
        left, right = ("[", "]") if isinstance(value, list) else ("(", ")")
    else:
        return flat
    return "\n".join([left, *lines, " " * indent + right])


def _flat(value: Any) -> str:
    """Return the source on one line."""
    if isinstance(value, Mapping):
        if _are_keywords(value):
            return "dict(" + ", ".join(f"{key}={_flat(child)}" for key, child in value.items()) + ")"
        return "{" + ", ".join(f"{key!r}: {_flat(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flat, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_flat, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f"float('{value}')"
    return repr(value)


def _are_keywords(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value)


def has_source(value: Any) -> bool:
    """Return True if `source_of` supports the value."""
    if isinstance(value, Mapping):
        return all(isinstance(key, (str, int)) and has_source(child) for key, child in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(has_source, value))
    return value is None or isinstance(value, (bool, int, float, str))
