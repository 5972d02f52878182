"""Fixtures for tests of commands and predictions: tiny models that generate words, images, configs and rows.

Packages that take seconds to import are imported inside the fixtures, because every test session loads this file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from mllm.predict.loaded_model import LoadedModel
    from mllm.protocols import Bundle
    from mllm.structures import Answer, Encoded, Mark

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = """
_base_ = ["{checkout}/config/_base_/models/medgemma.py", "{checkout}/config/_base_/datasets/dummy.py",
          "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="ckpt/tiny-medgemma", lora_r=4, lora_target="all", image_size=112,
                  image_token_len=16, max_length=256, lora_dropout=0.1)
data_args = dict(train=dict(size=8, image_size=112), validation=dict(size=2, image_size=112),
                 test=dict(size=2, image_size=112), gen_kwargs=dict(max_new_tokens=3))
training_args = dict(max_steps=4, per_device_train_batch_size=2, logging_steps=1, save_strategy="steps", save_steps=1,
                     eval_strategy="no", learning_rate=1e-3, dataloader_num_workers=0, save_total_limit=None)
{more}
"""
WriteConfig = Callable[..., str]
WriteRows = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write_config(folder: Path) -> WriteConfig:
    """A function that writes a config of four updates on phantoms, with more lines at its end, and returns its name."""

    def write(more: str = "", name: str = "run.py") -> str:
        Path(name).write_text(CONFIG.format(checkout=CHECKOUT, more=more))
        return name

    return write


@pytest.fixture
def write_rows(folder: Path) -> WriteRows:
    """A function that writes four rows about four gray images, followed by `more` rows (objects or raw lines)."""

    def write(*more: Mapping[str, Any] | str, name: str = "rows.jsonl") -> None:
        Path("pictures").mkdir(exist_ok=True)
        lines = []
        for number in range(4):
            Image.new("RGB", (20, 20), (50 * number,) * 3).save(Path("pictures") / f"{number}.png")
            row = {"image": f"{number}.png", "question": "What?", "answer": "A scan.", "patient": f"{name} {number}"}
            lines.append(json.dumps(row))
        lines += [line if isinstance(line, str) else json.dumps(line) for line in more]
        Path(name).write_text("".join(f"{line}\n" for line in lines))

    return write


def write_generating(family: str, folder: Path, **options: Any) -> Path:
    """Write a tiny model that generates words.

    The layers of a plain tiny model change the residual stream so little that it repeats the prompt's last token.
    """
    from safetensors.torch import load_file, save_file

    from mllm.tiny.checkpoints import write_tiny

    write_tiny(family, folder, **options)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("post_feedforward_layernorm.weight"):
            tensor += 30
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def generating_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MedGemma for images of 224 pixels that generates words."""
    return write_generating("medgemma", tmp_path_factory.mktemp("talking") / "medgemma", vision={"image_size": 224})


@pytest.fixture(scope="session")
def generating_adapter(generating_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of `generating_base` as PEFT writes it, without `mllm.json` and processor."""
    from mllm.tiny.adapter import write_tiny_adapter

    return write_tiny_adapter(generating_base, tmp_path_factory.mktemp("talking") / "adapter")


@pytest.fixture(scope="session")
def other_adapter(generating_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second adapter of `generating_base`, with other targets and a rank of its own."""
    from mllm.tiny.adapter import write_tiny_adapter

    return write_tiny_adapter(
        generating_base, tmp_path_factory.mktemp("other") / "adapter", rank=2, seed=1, targets=["q_proj", "v_proj"]
    )


@pytest.fixture(scope="session")
def measuring(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny model that measures EF from the views ED and ES, with batches of two."""
    from mllm.config.schema import ModelArgs
    from mllm.predict.library import load_model
    from mllm.tiny.checkpoints import write_tiny

    vision = {"image_size": 28, "num_hidden_layers": 1}
    base = write_tiny("medsiglip", tmp_path_factory.mktemp("measuring") / "base", vision=vision)
    heads = {"measures": {"type": "RegressionHead", "measures": ["EF"], "views": ["ED", "ES"], "hidden": 16}}
    return load_model(ModelArgs("medsiglip", str(base), part="vision", heads=heads, lora_r=None), 2)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three images of noise, `0.png` to `2.png`, and questions about them in `questions.jsonl`."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    rows = [
        {"image": "0.png", "question": "What is this?", "id": 7},
        {"image": ["1.png", "2.png"], "question": "Which of <image> and <image> is the older one, and why?"},
        {"image": "2.png", "question": "Why?", "answer": "left out", "modality": "CT"},
        {"question": "How many bones does a hand have?"},
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def pointing(monkeypatch: pytest.MonkeyPatch) -> list[list[Mark]]:
    """The marks that are added to generated answers: one list per image of a sample."""
    from mllm.models.generation import generate as generation
    from mllm.structures import Mark

    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:50] = True
    marks = [
        [Mark(box=(10.0, 5.04, 40.0, 30.0)), Mark(mask=mask), Mark(point=(70.0, 50.0))],
        [Mark(box=(0.0, 0.0, 20.0, 20.0), image=1)],
    ]
    real = generation.Generation.batches

    def batches(
        run: Any, prompts: Sequence[Encoded], numbers: Sequence[int], answered: Container[int] = ()
    ) -> Iterator[dict[int, Answer]]:
        for batch in real(run, prompts, numbers, answered):
            counts = {position: len(prompts[position].frames) for position in batch}
            yield {
                position: replace(answer, marks=tuple(mark for group in marks[: counts[position]] for mark in group))
                for position, answer in batch.items()
            }

    monkeypatch.setattr(generation.Generation, "batches", batches)
    return marks


@pytest.fixture(scope="session")
def generating_text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3n without images that generates words."""
    return write_generating("gemma3n", tmp_path_factory.mktemp("talker") / "gemma3n")


@pytest.fixture
def text_model(generating_text_model: Path) -> LoadedModel:
    """The loaded model of `generating_text_model`."""
    from mllm import load

    return load(model=generating_text_model)


@pytest.fixture
def text_bundle(text_model: LoadedModel) -> Bundle:
    """The bundle of `generating_text_model`."""
    from mllm.protocols import Bundle

    return Bundle(text_model.model, text_model.variant().encoder)
