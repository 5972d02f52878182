"""The encoder without weights is the one that the model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.models.builder.build_encoder import load_encoder
from mllm.models.builder.builder import load_pretrained
from mllm.structures import Sample, Turn


@pytest.mark.parametrize("changes", [{}, {"image_token_len": 128}, {"image_size": 448, "image_token_len": 32}])
def test_it_encodes_as_the_one_beside_the_model(tiny_medgemma: Path, changes: dict[str, Any]) -> None:
    args = ModelArgs(type="medgemma", model_name_or_path=str(tiny_medgemma), lora_r=None, system="Be brief.", **changes)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    sample = Sample(turns=[Turn("user", "<image> What?"), Turn("assistant", "Noise.")], images=[image])
    ours, theirs = (one.encode(sample) for one in (load_encoder(args), load_pretrained(args, detect()).encoder))
    for mine, other in ((ours.student, theirs.student), (ours.targets, theirs.targets)):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_another_family_has_its_own(tiny_llava: Path) -> None:
    encoder = load_encoder(ModelArgs(type="image-text", model_name_or_path=str(tiny_llava), max_length=77))
    assert encoder.max_length == 77
