"""Fixtures: tiny checkpoints from which a Shikra is loaded or composed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.tiny.checkpoints import write_tiny


@pytest.fixture(scope="session")
def tiny_shikra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA with the chat template of Vicuna."""
    return write_tiny("shikra", tmp_path_factory.mktemp("shikra") / "shikra")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with another width than the other tiny models."""
    widths = {"hidden_size": 192, "num_attention_heads": 6}
    return write_tiny("llama", tmp_path_factory.mktemp("llama") / "llama", text=widths)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of 112 pixels."""
    return write_tiny("clip", tmp_path_factory.mktemp("clip") / "clip")
