"""Sizes of files for `export_report.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def shard_sizes(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the names of weight files with their sizes in bytes."""
    return [{"file": file.name, "bytes": file.stat().st_size} for file in files]
