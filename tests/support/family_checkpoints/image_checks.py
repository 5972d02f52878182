"""Checks of models that read images: stored features and shared tokens change no result."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from mllm.config.rules.packing import packed_architectures
from mllm.config.rules.sharing import IMAGE_BLOCKS, SHARED
from mllm.dataset.loading.sharing import RowCollator
from mllm.engine.cache_room import CacheRoom
from mllm.engine.feature_cache import FeatureCache
from mllm.engine.feature_computer import accepts_features
from mllm.family import FAMILIES
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.encoding.packing import LAYOUT, packing
from mllm.models.generation.generate import generate
from mllm.models.generation.shared_prompts import SharedPrompts, shared_inputs
from mllm.models.language_model import LanguageModel
from mllm.objectives.text import NextToken
from mllm.predict.feature_filler import Filler, ImageSample
from mllm.protocols import Bundle
from mllm.structures import Context, Encoded, Sample, Turn

ANSWER = "A scan of the left lung"


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def conversation(*images: Image.Image, question: str = "What is this?", answer: str = ANSWER) -> Sample:
    return Sample([Turn("user", "<image>" * len(images) + question), Turn("assistant", answer)], list(images))


def batches(bundle: Bundle, samples: list[Sample]) -> list[list[Encoded]]:
    """Return the encoded samples in the groups that can share a batch, as in training and generation."""
    encoded = sorted((bundle.encoder.encode(sample) for sample in samples), key=lambda one: one.images_per_row)
    return [list(group) for _, group in groupby(encoded, key=lambda one: one.images_per_row)]


def loss_of(bundle: Bundle, samples: list[Sample]) -> Tensor:
    groups = [bundle.encoder.pad(group) for group in batches(bundle, samples)]
    totals = [NextToken().total(Context(batch.targets, bundle.model(**batch.student))) for batch in groups]
    return torch.cat(totals).sum()


def gradients(bundle: Bundle, samples: list[Sample]) -> dict[str, Tensor]:
    trained = {name: tensor for name, tensor in bundle.model.named_parameters() if tensor.requires_grad}
    torch.manual_seed(0)  # of dropout
    return dict(zip(trained, torch.autograd.grad(loss_of(bundle, samples), list(trained.values())), strict=True))


@torch.no_grad()
def reads_stored_features(bundle: Bundle, samples: list[Sample], out: Path) -> bool:
    """Return True if the model can read stored features of images.

    The states of each batch and the answers are those from pixels, and the features are not zero.
    """
    model, encoder = bundle.model, bundle.encoder
    if not any(sample.images for sample in samples) or not isinstance(encoder, ChatEncoder):
        return False
    if not accepts_features(model):
        return False
    expected = [model(**encoder.pad(group).student).hidden_BLD for group in batches(bundle, samples)]
    answers = generate(bundle, samples, max_new_tokens=4, batch_size=3, progress=False)
    cache = FeatureCache(out / "features", "0" * 40)
    filler = Filler(bundle, cache, CacheRoom(cache.folder, 10**9))
    if filler.computer.features(encoder.prompt(samples[0])) is None:
        return False  # its states from features are not those from pixels, so a run reads pixels
    for sample in samples:
        if sample.images:
            filler.add(ImageSample(cache.path(sample.images), encoder.prompt(sample)))
            features = cache.read(sample.images)
            assert features is not None and all(tensor.any() for tensor in features.values())
    encoder.stored_features = cache
    for group, states in zip(batches(bundle, samples), expected, strict=True):
        student = encoder.pad(group).student
        assert "pixel_values" not in student
        torch.testing.assert_close(model(**student).hidden_BLD, states, rtol=5e-5, atol=5e-5)
    assert generate(bundle, samples, max_new_tokens=4, batch_size=3, progress=False) == answers
    return True


def shares_images(bundle: Bundle) -> bool:
    """Return True if questions about one image can share its tokens: with the losses and gradients of questions alone.

    The rules of a config accept exactly these architectures.
    """
    model, encoder = bundle.model, bundle.encoder
    architecture = model.pretrained.config.model_type
    if architecture not in SHARED or not encoder.image_token_ids:
        return False
    assert isinstance(model, LanguageModel) and isinstance(encoder, ChatEncoder)
    image = picture(80, 60)
    samples = [conversation(image), conversation(image, question="Why?", answer="A shadow"), conversation()]
    encoder.stored_features = None
    expected = gradients(bundle, samples)
    encoder.shares_images = True
    model.share_tokens(image_blocks=architecture in IMAGE_BLOCKS)
    batch = RowCollator(encoder.pad_shared, samples_per_piece=4)([encoder.encode(sample) for sample in samples])
    (piece,) = batch.pieces
    assert piece.student[LAYOUT].leaders == (0, 0, 2)
    loss = NextToken().total(Context(piece.targets, model(**piece.student))).sum()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for name, gradient in zip(expected, torch.autograd.grad(loss, parameters), strict=True):
        assert (gradient - expected[name]).norm() < 2e-5 * expected[name].norm(), name
    return True


def packs(bundle: Bundle, samples: list[Sample], kind: str) -> bool:
    """Return True if samples can be packed into a row: with the losses and gradients of samples alone.

    The rules of a config accept exactly these architectures of the type `kind`.
    """
    model, encoder = bundle.model, bundle.encoder
    if model.pretrained.config.model_type not in packed_architectures(FAMILIES.find(kind)):
        return False
    assert isinstance(model, LanguageModel) and isinstance(encoder, ChatEncoder)
    encoder.stored_features = None
    expected = gradients(bundle, samples)
    config = model.pretrained.config.get_text_config(decoder=True)
    attention = config._attn_implementation
    model.share_tokens(image_blocks=model.pretrained.config.model_type in IMAGE_BLOCKS)
    encoded = [encoder.encode(sample) for sample in samples]
    (piece,) = RowCollator(packing(encoder.pad), samples_per_piece=len(samples))(encoded).pieces
    assert piece.student[LAYOUT].leaders == (0, 1, 2)
    loss = NextToken().total(Context(piece.targets, model(**piece.student))).sum()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for name, gradient in zip(expected, torch.autograd.grad(loss, parameters), strict=True):
        assert (gradient - expected[name]).norm() < 2e-5 * expected[name].norm(), name
    config._attn_implementation = attention  # what follows is compared with the attention of transformers
    return True


@torch.inference_mode()
def check_shared_answers(bundle: Bundle) -> None:
    """Compare the logits of generated tokens after shared images with those after prompts alone."""
    encoder, model = bundle.encoder, bundle.model
    assert isinstance(encoder, ChatEncoder) and isinstance(model, LanguageModel)
    encoder.shares_images, encoder.stored_features = True, None
    questions = [("What is this?", 80), ("Why?", 80), ("Is it the left lung?", 80), ("Which?", 50), ("Who?", 50)]
    prompts = [encoder.prompt(conversation(picture(width, 60), question=text)) for text, width in questions]
    options = GenerationConfig(max_new_tokens=3, return_dict_in_generate=True, output_logits=True)
    model.eval()

    def logits(inputs: dict[str, Any]) -> Tensor:
        return torch.stack(model.pretrained.generate(**inputs, generation_config=options).logits)

    expected = logits(encoder.pad(prompts, side="left").student)
    model.share_tokens(image_blocks=model.pretrained.config.model_type in IMAGE_BLOCKS)
    row = SharedPrompts(bundle, prompts)
    actual = logits(shared_inputs([(row, index) for index in range(len(prompts))]))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
