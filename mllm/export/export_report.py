"""`export_report.json`: what an export did, what it checked, and what it cost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "export_report.json"


def peak_memory() -> int:
    """The most bytes of memory that this process has held so far, files that it maps included."""
    status = Path("/proc/self/status")
    if status.is_file():
        # A process inherits the peak that getrusage tells from the one that started it.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def shard_sizes(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The files of weights with their sizes in bytes."""
    return [{"file": name, "bytes": (folder / name).stat().st_size} for name in names]
