"""Errors about files: the message names the file, the reason of private runs does not."""

from __future__ import annotations

from pathlib import Path

from mllm.errors import DataError


def unusable(path: Path, fault: str, details: str = "") -> DataError:
    """Return an error `PATH FAULT DETAILS`.

    Args:
        path: The file.
        fault: Cause and fix, without any value of the file.
        details: Rest of the message, which private runs do not show, such as names of other files.
    """
    return DataError(f"{path} {fault}{details}", f"its file {fault}")
