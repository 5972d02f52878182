"""Answers that continue from shared keys and values are those of each prompt alone, as transformers computes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder.builder import load_pretrained
from mllm.models.encoding.image_features import backbone_inputs, compute_features, with_features
from mllm.models.generation.generate import Generation, generate
from mllm.models.generation.shared_prompts import SharedPrompts, shared_inputs
from mllm.protocols import Bundle
from mllm.shared_rows import leaders_of
from mllm.structures import Encoded, Sample, Turn
from mllm.tiny.checkpoints import write_tiny

QUESTIONS = (
    "Why?",
    "Is there a fracture of the left arm or of the right arm?",
    "What is seen in the left upper lobe of the lung of this patient, and since when?",
    "Is there an effusion?",
    "Is there a nodule?",
)
FAMILIES = {
    "medgemma": ("medgemma", dict(image_size=112, image_token_len=16), dict(sliding_window=24)),
    "llava": ("image-text", dict(), None),
    "gemma3n-student": ("gemma3n-student", dict(), dict(sliding_window=24)),
}
"""Tiny checkpoint -> type of its models, options, and changes of its text model: windows are shorter than prompts."""


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny model whose samples share tokens."""
    kind, more, text = FAMILIES[request.param]
    folder = write_tiny(request.param, tmp_path_factory.mktemp("shared") / request.param, text=text)
    args = ModelArgs(kind, str(folder), lora_r=None, max_length=2048, **more)
    bundle = load_pretrained(args, Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2))
    bundle.encoder.shares_images = True
    bundle.model.share_tokens(image_blocks=request.param == "medgemma")
    bundle.model.eval()
    return bundle


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (56, 56, 3), dtype=np.uint8))


def asked(*images: int, text: str = "<image>", count: int = len(QUESTIONS)) -> list[Sample]:
    """Return questions about images with these numbers, behind a text with a placeholder for each."""
    return [
        Sample(
            [Turn("user", f"{text * len(images)}{question}"), Turn("assistant", "left out")], [*map(picture, images)]
        )
        for question in QUESTIONS[:count]
    ]


def mixed() -> list[Sample]:
    """Return questions about an image, about two images, about an image after a text, a text, and a single question."""
    groups = [asked(0), asked(0, 1, count=3), asked(2, text="A scan of the chest: <image>", count=3)]
    samples = [*sum(groups, []), *asked(count=1), *asked(3, count=1)]
    return [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]


def logits_of(bundle: Bundle, inputs: dict) -> torch.Tensor:
    """Return the logits of four generated tokens [B, 4, vocabulary]."""
    with torch.inference_mode():
        outputs = bundle.model.pretrained.generate(
            **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    return torch.stack(outputs.logits, dim=1)


@pytest.mark.parametrize("stores", [False, True])
def test_logits_from_a_shared_row_are_those_of_transformers(bundle: Bundle, stores: bool) -> None:
    prompts = [bundle.encoder.prompt(sample) for sample in [*asked(0), *asked(1, 2)]]
    assert [i for i, leader in enumerate(leaders_of(prompts)[0]) if i == leader] == [0, 5]
    if stores:
        model = bundle.model.pretrained
        features = [with_features(prompt.student, compute_features(model, prompt.student)) for prompt in prompts]
        pairs = zip(prompts, features, strict=True)
        prompts = [replace(prompt, student=student, has_features=True) for prompt, student in pairs]
    rows = [SharedPrompts(bundle, prompts[:5]), SharedPrompts(bundle, prompts[5:])]
    for indices in ([0, 1, 2], [9, 3, 7, 4]):
        plain = bundle.encoder.pad([prompts[i] for i in indices], side="left").student
        expected = logits_of(bundle, backbone_inputs(plain))
        actual = logits_of(bundle, shared_inputs([(rows[i // 5], i % 5) for i in indices]))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_answers_do_not_depend_on_sharing_batches_and_order(bundle: Bundle) -> None:
    samples = mixed()
    options = dict(max_new_tokens=6, progress=False, do_sample=True, temperature=5.0, seed=3)
    expected = generate(bundle, samples, share_images=False, batch_size=1, **options)
    assert len({answer.text for answer in expected}) > 10
    for size in (3, 8):
        assert generate(bundle, samples, batch_size=size, **options) == expected
    numbers = range(len(samples))[::-1]
    assert generate(bundle, samples[::-1], batch_size=4, numbers=numbers, **options) == expected[::-1]


@pytest.mark.parametrize("size", [1, 10])
def test_the_tower_runs_once_for_the_questions_about_images(bundle: Bundle, size: int) -> None:
    images = []
    tower = bundle.model.pretrained.get_submodule(bundle.model.towers["vision"])

    def count(module: torch.nn.Module, arguments: tuple, options: dict) -> None:
        images.append(len(arguments[0] if arguments else options["pixel_values"]))

    questions = [replace(sample, turns=[Turn("user", text)]) for sample, text in zip(asked(0), "abcde", strict=True)]
    samples = questions[:3] if size == 1 else [*questions, *asked(0, 1)]
    handle = tower.register_forward_pre_hook(count, with_kwargs=True)
    try:
        generate(bundle, samples, max_new_tokens=1, batch_size=size, progress=False)
    finally:
        handle.remove()
    assert sum(images) == (1 if size == 1 else 1 + 2)


def test_batches_with_answers_are_left_out(bundle: Bundle) -> None:
    prompts = [bundle.encoder.prompt(sample) for sample in mixed()]
    generation = Generation.of(bundle, max_new_tokens=2, batch_size=2)
    whole = list(generation.batches(prompts, range(len(prompts))))
    assert sorted(index for batch in whole for index in batch) == list(range(len(prompts)))
    half = next(number for number, batch in enumerate(whole) if len(batch) == 2)
    done = {next(iter(whole[half])), *(i for batch in whole[half + 1 : half + 4] for i in batch)}
    rest = list(generation.batches(prompts, range(len(prompts)), done))
    assert rest == whole[: half + 1] + whole[half + 4 :]


def encoded(ids: list[int], key: str | None = "a", end: int = 2) -> Encoded:
    labels = torch.zeros(len(ids), dtype=torch.long)
    return Encoded({"input_ids": torch.tensor(ids)}, {"labels": labels}, image_key=key, image_end=end)
