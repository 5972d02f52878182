"""Small registered classes and config files for the tests of `mllm.config`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mllm.registry import DATASETS, TRANSFORMS


class Phantoms:
    def __init__(self, size: int = 4, seed: int = 0, tasks: tuple = (), image_size: int = 16, modalities: Any = None):
        self.size = size


class Rows:
    def __init__(self, data_path: str, image_folder: str | None = None, transforms: tuple = (), seed: int = 0):
        self.data_path = data_path


class Joined:
    def __init__(self, datasets: list):
        self.datasets = datasets


class Flip:
    def __init__(self, probability: float = 0.5):
        self.probability = probability


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, name, entry in (
        (DATASETS, "Phantoms", Phantoms),
        (DATASETS, "Rows", Rows),
        (DATASETS, "Joined", Joined),
        (TRANSFORMS, "Flip", Flip),
    ):
        monkeypatch.setitem(registry.module_dict, name, entry)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that writes `name.py` into the empty current directory; messages name it without a folder."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "run.py") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    return write_file


@pytest.fixture
def bases(write: Callable[..., Path]) -> str:
    """The `_base_` line of three base configs, which are written."""
    write('model_args = dict(\n    type="medgemma",\n    model_name_or_path="ckpt/medgemma-4b-it",\n)\n', "model.py")
    write('data_args = dict(\n    train=dict(type="Phantoms", size=8,\n        tasks=("modality",)),\n)\n', "data.py")
    write("training_args = dict(learning_rate=1e-4)\n", "runtime.py")
    return '_base_ = ["model.py", "data.py", "runtime.py"]\n'
