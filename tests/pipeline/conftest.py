"""A tiny MedGemma that answers in words, with an adapter and a picture to ask about."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from mllm.testing.tiny import write_tiny
from mllm.testing.tiny_adapter import write_tiny_adapter


@pytest.fixture(scope="session")
def talking_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MedGemma at 224 pixels whose layers speak louder than the prompt's last token, so that it says words."""
    folder = write_tiny("medgemma", tmp_path_factory.mktemp("talking") / "medgemma", vision={"image_size": 224})
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("post_feedforward_layernorm.weight"):
            tensor += 30
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def talking_adapter(talking_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its adapter, as PEFT alone writes it: without `mllm.json` and processor."""
    return write_tiny_adapter(talking_base, tmp_path_factory.mktemp("talking") / "adapter")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three pictures of noise, `0.png` to `2.png`, and questions about them in `questions.jsonl`."""
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
