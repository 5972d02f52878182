"""Collection of the warnings that a run logs, for `warnings.json` and its report."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mllm.files import write_json
from mllm.run_files import WARNINGS

MAX_WARNINGS = 200
"""Maximum number of different warnings."""


class WarningLog(logging.Handler):
    """Handler that keeps each different warning of `mllm` once. Records of private runs have no values of the data."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of a record."""
        if len(self.texts) < MAX_WARNINGS:
            self.texts[record.getMessage()] = None

    def write(self, folder: Path) -> None:
        """Write `warnings.json` to a run folder: the warnings of the run before a resume, and those of this process."""
        path = folder / WARNINGS
        try:
            former = json.loads(path.read_text(encoding="utf-8"))["warnings"] if path.is_file() else []
        except (ValueError, KeyError, TypeError):
            former = []  # a damaged file; it is replaced
        write_json(path, {"warnings": list(dict.fromkeys([*former, *self.texts]))})


@contextmanager
def collected_warnings() -> Iterator[WarningLog]:
    """Yield the warnings that the package logs in the block."""
    log, logger = WarningLog(), logging.getLogger("mllm")
    logger.addHandler(log)
    try:
        yield log
    finally:
        logger.removeHandler(log)
