"""Errors about files: the message names the file, the reason of private runs does not."""

from __future__ import annotations

from pathlib import Path

from mllm.errors import DataError


def unusable(path: Path, fault: str) -> DataError:
    """Return an error `PATH FAULT`; FAULT contains no value of the file."""
    return DataError(f"{path} {fault}", f"its file {fault}")
