"""Reading `tokenizer.json` in little memory: Gemma's holds half a million merges, which are kept as pairs of ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mllm.errors import ConfigError

_STRING = rb'"(?:[^"\\]|\\.)*"'
_START = re.compile(rb'"merges"\s*:\s*\[')
_MERGE = re.compile(rb"\s*,?\s*(?:\[\s*(%b)\s*,\s*(%b)\s*\]|(%b))" % (_STRING, _STRING, _STRING))
"""A merge as new files write it, `["a", "b"]`, or as old ones, `"a b"`."""


def read_tokenizer_json(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """What the file says, its merges left out, and the merges as ids [merges, 2] of the pieces that are joined.

    Where there is no such file, nothing and none. Raises `ConfigError` where it is damaged.
    """
    none = np.empty((0, 2), np.int64)
    if not path.is_file():
        return {}, none
    data = path.read_bytes()
    begin = _START.search(data)
    try:
        if begin is None:
            return dict(json.loads(data)), none
        end = begin.end()
        for match in _merges(data, begin.end()):
            end = match.end()
        rest = dict(json.loads(data[: begin.end()] + data[end:]))
        ids = rest["model"]["vocab"]
        joined = (ids[piece] for match in _merges(data, begin.end()) for piece in _parts(match))
        return rest, np.fromiter(joined, np.int64).reshape(-1, 2)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): download or save the tokenizer again") from error


def _merges(data: bytes, place: int) -> Iterator[re.Match[bytes]]:
    """The merges one after the other, from `place` on."""
    while match := _MERGE.match(data, place):
        yield match
        place = match.end()


def _parts(match: re.Match[bytes]) -> tuple[str, str]:
    left, right, both = match.groups()
    if both is None:
        return json.loads(left), json.loads(right)
    left, _, right = json.loads(both).partition(" ")
    return left, right
