"""The encoder that is built without a model equals that of the loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.models.builder.builder import load_encoder, load_pretrained
from mllm.models.shikra.options import ShikraArgs
from mllm.structures import Mark, Sample, Turn

HEADS = {"box": {"type": "BoxHead"}, "mask": {"type": "MaskHead", "dim": 64}}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def assert_equal(args: ModelArgs) -> dict[str, torch.Tensor]:
    """Check that both encoders return equal tensors, and return them."""
    mask = np.arange(60 * 80).reshape(60, 80) % 80 > 50
    turns = [Turn("user", "<image> Where?"), Turn("assistant", "<box> Noise.", ((0,),))]
    sample = Sample(turns, [PICTURE], marks=[Mark(box=(51, 0, 80, 60), mask=mask)])
    ours, theirs = (one.encode(sample) for one in (load_encoder(args), load_pretrained(args, detect()).encoder))
    for mine, other in ((ours.student, theirs.student), (ours.targets, theirs.targets)):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)
    return ours.targets


@pytest.mark.parametrize(
    "changes",
    [{}, {"image_token_len": 128}, {"image_size": 448, "image_token_len": 32}, {"heads": HEADS, "image_size": 448}],
)
def test_the_encoder_equals_that_of_the_loaded_model(tiny_medgemma: Path, changes: dict[str, Any]) -> None:
    args = ModelArgs(type="medgemma", model_name_or_path=str(tiny_medgemma), lora_r=None, system="Be brief.", **changes)
    targets = assert_equal(args)
    if "heads" in changes:
        assert targets["masks"].shape == (1, 128, 128) and targets["masks"].any()


@pytest.mark.parametrize("type", ["shikra", "perceptionGPT"])
def test_a_composed_llava_behaves_the_same(tiny_llama: Path, tiny_clip: Path, type: str) -> None:
    assert_equal(ShikraArgs(type=type, model_name_or_path=str(tiny_llama), vision_tower=str(tiny_clip), lora_r=None))


@pytest.mark.parametrize("box_format", [None, {"type": "location_tokens", "num_bins": 101}])
def test_the_encoder_of_another_family_equals_that_of_its_model(
    tiny_llava: Path, box_format: dict[str, Any] | None
) -> None:
    args = ModelArgs("image-text", str(tiny_llava), lora_r=None, max_length=777, box_format=box_format)
    assert load_encoder(args).max_length == 777
    assert_equal(args)
