"""Hidden states in the place of logits, the same alone and in a mixed, padded batch."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm.models.encoder import ChatEncoder
from mllm.models.perception import PerceptionModel
from mllm.structures import Sample, Turn

TOWERS = {"vision": "model.vision_tower", "language": "model.language_model"}


def _sample(images, question="What is this?", answer="A scan"):
    rng = np.random.default_rng(len(question))
    sizes = [(60, 50), (50, 90), (90, 60)]
    pictures = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes[:images]
    ]
    return Sample([Turn("user", "<image>" * images + question), Turn("assistant", answer)], pictures)


@pytest.fixture(params=["small_gemma", "tiny_llava", "tiny_qwen2_vl"])
def folder(request):
    return request.getfixturevalue(request.param)


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_sample_is_seen_alike_alone_and_in_a_mixed_batch(folder, side):
    model = PerceptionModel(AutoModelForImageTextToText.from_pretrained(folder).eval(), TOWERS)
    encoder = ChatEncoder(AutoProcessor.from_pretrained(folder), max_length=4096)
    samples = [
        encoder.encode(sample)
        for sample in (_sample(1), _sample(0, "Why?", "Because of the long answer"), _sample(2, "Which one of these?"))
    ]
    batch = encoder.pad(samples, side=side)
    together = model(**batch.student).hidden_BLD
    for row, sample in enumerate(samples):
        alone = model(**encoder.pad([sample]).student).hidden_BLD[0]
        real = batch.student["attention_mask"][row].bool()
        torch.testing.assert_close(together[row][real], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_hidden_states_through_the_vocabulary_are_the_models_own_logits(folder):
    pretrained = AutoModelForImageTextToText.from_pretrained(folder).eval()
    encoder = ChatEncoder(AutoProcessor.from_pretrained(folder), max_length=4096)
    batch = encoder.pad([encoder.encode(_sample(1))])
    outputs = PerceptionModel(pretrained, TOWERS)(**batch.student)
    torch.testing.assert_close(outputs.vocabulary(outputs.hidden_BLD), pretrained(**batch.student).logits)
    assert outputs.softcap is None


def test_the_image_changes_what_is_seen(folder):
    model = PerceptionModel(AutoModelForImageTextToText.from_pretrained(folder).eval(), TOWERS)
    encoder = ChatEncoder(AutoProcessor.from_pretrained(folder), max_length=4096)
    student = encoder.pad([encoder.encode(_sample(1))]).student
    with torch.no_grad():
        seen = model(**student).hidden_BLD[0, -1]
        other = model(**{**student, "pixel_values": -student["pixel_values"]}).hidden_BLD[0, -1]
    assert (seen - other).abs().max() > 1e-3


def test_towers_are_told_by_the_names_of_parameters(small_gemma):
    pretrained = AutoModelForImageTextToText.from_pretrained(small_gemma).requires_grad_(False)
    adapted = get_peft_model(pretrained, LoraConfig(r=2, target_modules=r".*vision_tower.*\.fc1"))
    model = PerceptionModel(adapted, TOWERS)
    assert model.pretrained is pretrained
    assert model.trains("vision")
    assert not model.trains("language")
    towers = {model.tower_of(name) for name, _ in model.named_parameters()}
    assert towers == {"vision", "language", "other"}
