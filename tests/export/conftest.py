"""Fixtures: a tiny MedGemma with an adapter of random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.models.builder.builder import load_pretrained
from mllm.protocols import Bundle
from mllm.tiny.adapter import write_tiny_adapter
from mllm.tiny.checkpoints import write_tiny

Loader = Callable[..., tuple[Bundle, dict[str, Any]]]


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MedGemma for images of 224 pixels, to save time: 16 x 16 patches and 256 tokens."""
    return write_tiny("medgemma", tmp_path_factory.mktemp("base") / "medgemma", vision={"image_size": 224})


@pytest.fixture(scope="session")
def small_adapter(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_adapter(small_base, tmp_path_factory.mktemp("adapter") / "adapter")


@pytest.fixture
def load(small_base: Path, small_adapter: Path) -> Loader:
    """Return a function that loads the base with the adapter and returns the bundle and its `model_args`."""

    def load(**changes: Any) -> tuple[Bundle, dict[str, Any]]:
        options: dict[str, Any] = dict(
            type="medgemma", model_name_or_path=str(small_base), adapter_path=str(small_adapter), lora_r=None
        )
        args = ModelArgs(**(options | changes))
        return load_pretrained(args, detect()), asdict(args)

    return load
