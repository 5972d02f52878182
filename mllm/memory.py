"""Peak memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def peak_memory() -> int:
    """Return the peak memory of this process in bytes, including memory-mapped files, since the last `restart_peak`."""
    if STATUS.is_file():
        # getrusage also counts the peak of the parent process before the fork.
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def restart_peak() -> bool:
    """Count the peak from the memory that this process has now (proc(5), clear_refs). Return False if it cannot be."""
    try:
        CLEAR.write_text("5")
    except OSError:  # another system than Linux, or a container that forbids it
        return False
    return True
