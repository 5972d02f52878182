"""Writer of `predictions.jsonl` and of the output of `mllm predict --batch`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mllm.files import json_line, replaced_file


def write_predictions(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write `rows` as JSON lines to `path` and return their number.

    `rows` may be lazy: one row is held at a time. `path` is replaced after the last row; if an error is raised before,
    the old file stays.
    """
    count = 0
    with replaced_file(path) as file:
        for row in rows:
            file.write(json_line(row))
            count += 1
    return count
