"""Measurements for `export_report.json`: peak memory and sizes of files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def peak_memory() -> int:
    """Return the peak memory of this process in bytes, including memory-mapped files."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage also counts the peak of the parent process before the fork.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def shard_sizes(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the names of weight files with their sizes in bytes."""
    return [{"file": file.name, "bytes": file.stat().st_size} for file in files]
