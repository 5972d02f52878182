"""Fixtures: tiny models of several families with a LoRA, learners, and samples of different lengths."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.engine.learner import Learner
from mllm.models.builder.builder import load_pretrained
from mllm.objectives.measures import MeasureLoss, VolumeConsistency
from mllm.objectives.text import NextToken
from mllm.structures import Sample, Turn
from mllm.tiny.checkpoints import write_tiny

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{% if turn['role'] == 'user' %}{{ 'Question:\n' ~ turn['content'] }}"
    "{% else %}{{ 'Response:\n' ~ turn['content'] ~ eos_token }}{% endif %}{% endfor %}"
)
FAMILIES = {
    "vaultgemma": dict(type="causal-lm", chat_template=TEMPLATE),
    "gemma3n": dict(type="causal-lm"),
    "t5gemma": dict(type="seq2seq"),
    "medgemma": dict(type="medgemma", image_size=112, image_token_len=16),
}


def samples(with_images):
    """Four conversations; the first has two images, the second none, so that indices of images and samples differ."""
    rng = np.random.default_rng(3)
    words = ["chest", "normal", "lesion", "left", "3.5 mm", "opacity"]
    samples = []
    for images, length in ((2, 7), (0, 2), (1, 12), (1, 4)):
        pictures = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(images)]
        question, answer = (" ".join(rng.choice(words, size=size)) for size in (3 + length, length))
        samples.append(Sample([Turn("user", question), Turn("assistant", answer)], pictures if with_images else []))
    return samples


@pytest.fixture(scope="session")
def make_private(tmp_path_factory):
    """A function that builds a learner in fp64 of a tiny model with LoRA (B is random), and encoded samples."""
    folder = tmp_path_factory.mktemp("families")

    def make(family, dtype=torch.float64, **options):
        path = write_tiny(family, folder / family)
        torch.manual_seed(0)
        args = {"lora_r": 4, "max_length": 128, **FAMILIES[family], **options}
        bundle = load_pretrained(ModelArgs(model_name_or_path=str(path), **args), CPU)
        with torch.no_grad():
            for name, parameter in bundle.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        bundle.model.to(dtype)
        learner = Learner(bundle.model, {"next_token": NextToken()}, reduction="samples").train()
        encoded = [bundle.encoder.encode(sample) for sample in samples(family == "medgemma")]

        def pad(chosen):
            return bundle.encoder.pad(chosen).map(
                lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor
            )

        return SimpleNamespace(bundle=bundle, learner=learner, encoded=encoded, pad=pad)

    return make


HEAD = dict(type="RegressionHead", hidden=16, dropout=0.0, scale=dict(EF=(55, 12), EDV=(120, 45), ESV=(55, 35)))


@pytest.fixture(scope="session")
def make_private_vision(tmp_path_factory):
    """As `make_private`, for a tiny MedSigLIP with LoRA that predicts measures from two views."""
    folder = tmp_path_factory.mktemp("vision")

    def make(dtype=torch.float64):
        path = write_tiny("medsiglip", folder / "medsiglip")
        torch.manual_seed(0)
        args = ModelArgs(
            "medsiglip", str(path), part="vision", lora_r=4, lora_target="vision", heads={"measures": HEAD}
        )
        bundle = load_pretrained(args, CPU)
        with torch.no_grad():
            for name, parameter in bundle.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        bundle.model.to(dtype)
        objectives = {"measures": MeasureLoss(), "agreement": VolumeConsistency(weight=0.3)}
        rng = np.random.default_rng(5)
        patients = [
            Sample([], [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(2)],
                   views=["ES", "ED"], measures=measures)
            for measures in (dict(EF=60.0, EDV=100.0, ESV=40.0), dict(EF=20.0), dict(EDV=300.0, ESV=230.0))
        ]  # fmt: skip

        def pad(chosen):
            return bundle.encoder.pad(chosen).map(
                lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor
            )

        encoded = [bundle.encoder.encode(sample) for sample in patients]
        learner = Learner(bundle.model, objectives, reduction="samples").train()
        return SimpleNamespace(bundle=bundle, learner=learner, encoded=encoded, pad=pad)

    return make
