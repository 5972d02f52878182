"""Measures of a batch equal those of single samples."""

import numpy as np
import pytest
from PIL import Image

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder.builder import load_pretrained
from mllm.models.generation.answers import answers, measure
from mllm.protocols import Bundle
from mllm.structures import Sample, Turn

HEADS = dict(measures=dict(type="RegressionHead", measures=["EF", "EDV"], views=["ED", "ES"]))


@pytest.fixture(scope="module")
def bundle(tiny_medsiglip) -> Bundle:
    args = ModelArgs("medsiglip", str(tiny_medsiglip), part="vision", lora_r=4, lora_target="vision", heads=HEADS)
    bundle = load_pretrained(args, Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2))
    bundle.model.head.normalize({"EF": [40, 60], "EDV": [100, 150]})
    return bundle


def _samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    pictures = [[Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)) for _ in range(2)] for _ in range(5)]
    return [
        Sample([Turn("user", "")], images=images, views=["ES", "ED"], source=f"{i}.avi")
        for i, images in enumerate(pictures)
    ]


def test_measures_do_not_depend_on_batch_and_order(bundle: Bundle):
    samples = _samples()
    together = measure(bundle, samples, batch_size=2, progress=False)
    for answer, sample in zip(together, samples, strict=True):
        alone = measure(bundle, iter([sample]), progress=False)[0]
        assert answer.measures == pytest.approx(alone.measures, rel=1e-5)
        turned = Sample(sample.turns, images=sample.images[::-1], views=["ED", "ES"])
        assert measure(bundle, [turned], progress=False)[0].measures == pytest.approx(alone.measures, rel=1e-5)
    assert len({answer.text for answer in together}) == 5
    assert together[0].text == f"EF {together[0].measures['EF']:.1f} %, EDV {together[0].measures['EDV']:.1f} mL"


def test_measures_have_the_interface_of_generation(bundle: Bundle):
    samples = _samples()[:2]
    assert answers(bundle, samples, max_new_tokens=5, progress=False) == measure(bundle, samples, progress=False)


def test_generation_keeps_the_training_mode(bundle: Bundle):
    bundle.model.train()
    measure(bundle, _samples()[:1], progress=False)
    assert bundle.model.training
