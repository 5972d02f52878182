"""Writer of `predictions.jsonl` and of the output of `mllm predict --batch`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mllm.files import replaced_file


def write_predictions(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write `rows` as JSON lines to `path` and return their number.

    `rows` may be lazy: one row is held at a time. `path` is replaced after the last row; if an error is raised before,
    the old file stays.
    """
    count = 0
    with replaced_file(path) as file:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False)
            if not _is_utf8(line):  # a field of the row holds a lone surrogate, which JSON can escape
                line = json.dumps(row)
            file.write(line + "\n")
            count += 1
    return count


def _is_utf8(text: str) -> bool:
    """Return True if a text can be written as UTF-8: it has no lone surrogate."""
    return not re.search("[\ud800-\udfff]", text)
