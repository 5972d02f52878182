"""Shared fixtures of the tests of backbones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(tiny_llava: Path, tmp_path: Path) -> Path:
    """Return a copy of a checkpoint, for tests that damage it."""
    return Path(shutil.copytree(tiny_llava, tmp_path / "copy"))
