"""Reader of `tokenizer.json` that stores the merges, half a million for Gemma, as pairs of ids to save memory."""

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
"""A merge in new files, `["a", "b"]`, or in old ones, `"a b"`."""


def read_tokenizer_json(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Return the content of the file without its merges, and the merges as ids [merges, 2] of the joined pieces.

    Both are empty if the file does not exist. Raises `ConfigError` if it is damaged.
    """
    no_merges = np.empty((0, 2), np.int64)
    if not path.is_file():
        return {}, no_merges
    data = path.read_bytes()
    begin = _START.search(data)
    try:
        if begin is None:
            return dict(json.loads(data)), no_merges
        end = begin.end()
        for match in _merges(data, begin.end()):
            end = match.end()
        content = dict(json.loads(data[: begin.end()] + data[end:]))
        ids = content["model"]["vocab"]
        joined = (ids[piece] for match in _merges(data, begin.end()) for piece in _parts(match))
        return content, np.fromiter(joined, np.int64).reshape(-1, 2)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): download or save the tokenizer again") from error


def _merges(data: bytes, start: int) -> Iterator[re.Match[bytes]]:
    """Yield the merges, starting at the position `start`."""
    while match := _MERGE.match(data, start):
        yield match
        start = match.end()


def _parts(match: re.Match[bytes]) -> tuple[str, str]:
    left, right, both = match.groups()
    if both is None:
        return json.loads(left), json.loads(right)
    left, _, right = json.loads(both).partition(" ")
    return left, right
