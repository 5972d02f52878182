"""Type `medgemma`: a trainable model from `model_args`, with the configured size and tokens of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from PIL import Image
from transformers import AutoModelForImageTextToText

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.builder.builder import load_pretrained
from mllm.models.language_model import LanguageModel
from mllm.models.medgemma.family import TOWERS
from mllm.protocols import Bundle
from mllm.structures import Sample, Turn

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
SAMPLE = Sample([Turn("user", "<image> Which modality?"), Turn("assistant", "ultrasound")], [PICTURE])


def args(folder: Path, **changes: object) -> ModelArgs:
    options = {"image_size": 448, "image_token_len": 32, "lora_r": 4, **changes}
    return ModelArgs(type="medgemma", model_name_or_path=str(folder), **options)


def loss(bundle: Bundle) -> torch.Tensor:
    """Return the mean negative log likelihood of the answer."""
    batch = bundle.encoder.pad([bundle.encoder.encode(SAMPLE)])
    outputs = bundle.model(**batch.student)
    logits = outputs.vocabulary(outputs.hidden_BLD[:, :-1].to(outputs.vocabulary.weight.dtype)).float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets["labels"][:, 1:].flatten())


def test_outputs_equal_those_of_transformers(tiny_medgemma: Path) -> None:
    bundle = load_pretrained(args(tiny_medgemma, image_size=None, image_token_len=None), CPU)
    stock = AutoModelForImageTextToText.from_pretrained(tiny_medgemma)
    batch = bundle.encoder.pad([bundle.encoder.encode(SAMPLE)])
    with torch.no_grad():
        expected = stock(**batch.student, labels=batch.targets["labels"]).loss
        torch.testing.assert_close(loss(bundle), expected)


@pytest.mark.parametrize(("target", "trains"), [("language", {"language"}), ("all", {"language", "vision"})])
def test_only_the_adapter_trains_and_every_part_of_it(tiny_medgemma: Path, target: str, trains: set[str]) -> None:
    bundle = load_pretrained(args(tiny_medgemma, lora_target=target), CPU)
    model = bundle.model
    assert isinstance(model, LanguageModel) and model.towers == TOWERS
    trainable = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert all("lora_" in name and tensor.dtype is torch.float32 for name, tensor in trainable.items())
    assert {model.tower_of(name) for name in trainable} == trains
    # 3 language layers with 7 Linear layers each, 2 vision layers with 6
    assert len(trainable) == 2 * (21 + 12 * ("vision" in trains))
    with torch.no_grad():
        for name, tensor in trainable.items():
            if "lora_B" in name:
                tensor.normal_(std=0.02)
    loss(bundle).backward()
    assert [name for name, tensor in trainable.items() if tensor.grad is None or not tensor.grad.any()] == []


def test_images_have_the_configured_size_and_tokens(tiny_medgemma: Path) -> None:
    encoded = load_pretrained(args(tiny_medgemma), CPU).encoder.encode(SAMPLE)
    assert encoded.student["pixel_values"].shape == (1, 3, 448, 448)
    assert int((encoded.student["token_type_ids"] == 1).sum()) == 32


@pytest.mark.parametrize(("bits", "kind"), [(4, Linear4bit), (8, Linear8bitLt)])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_quantized_weights_train_too(tiny_medgemma: Path, bits: int, kind: type, precision: str) -> None:
    model_args = args(tiny_medgemma, load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    bundle = load_pretrained(model_args, replace(CPU, precision=precision))
    quantized = {
        bundle.model.tower_of(f"{name}.")
        for name, module in bundle.model.pretrained.named_modules()
        if isinstance(module, kind)
    }
    assert quantized == ({"language", "vision"} if bits == 4 else {"language"})
    loss(bundle).backward()
    gradients = [tensor.grad for name, tensor in bundle.model.named_parameters() if "lora_B" in name]
    assert len(gradients) == 21 and all(gradient is not None and gradient.any() for gradient in gradients)


def test_without_an_adapter(tiny_medgemma: Path) -> None:
    bundle = load_pretrained(args(tiny_medgemma, lora_r=None), CPU)
    assert not any(tensor.requires_grad for tensor in bundle.model.parameters())
    assert not bundle.model.pretrained.training


def test_another_architecture_is_refused(tiny_llava: Path) -> None:
    with pytest.raises(ConfigError, match="is a 'llava' model: use type='image-text'"):
        load_pretrained(args(tiny_llava), CPU)
