"""Fixtures: checkpoints for the tests of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.tiny.adapter import write_tiny_adapter
from mllm.tiny.checkpoints import write_tiny


@pytest.fixture(scope="session")
def small_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 of 224 pixels."""
    return write_tiny("medgemma", tmp_path_factory.mktemp("base") / "model", vision={"image_size": 224})


@pytest.fixture(scope="session")
def start_adapter(small_gemma: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter of rank 4 and alpha 8, like published ones: its target suffixes match both towers."""
    return write_tiny_adapter(small_gemma, tmp_path_factory.mktemp("start") / "adapter", rank=4, alpha=8)
