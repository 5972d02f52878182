"""Full Gemma 3n: modules of its LoRA, and outputs for an image."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Gemma3nForConditionalGeneration

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.builder.builder import load_pretrained
from mllm.structures import Sample, Turn

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)


def _load(path, **options):
    return load_pretrained(ModelArgs("gemma3n-student", str(path), **{"lora_r": 4, **options}), CPU)


@pytest.mark.parametrize(
    "target, towers", [("language", {"language"}), ("vision", {"vision"}), ("all", {"language", "vision"})]
)
def test_each_target_matches_only_its_tower(tiny_student, target: str, towers: set[str]):
    model = _load(tiny_student, lora_target=target).model
    assert {model.tower_of(name) for name, p in model.named_parameters() if p.requires_grad} == towers


@torch.no_grad()
def test_outputs_equal_those_of_stock_transformers(tiny_student):
    bundle = _load(tiny_student, lora_r=None)
    image = Image.effect_noise((80, 60), 90).convert("RGB")
    batch = bundle.encoder.pad(
        [bundle.encoder.prompt(Sample([Turn("user", "<image> How many beats?")], images=[image]))]
    )
    hidden = bundle.model.eval()(**batch.student)
    logits = hidden.vocabulary(hidden.hidden_BLD)
    if hidden.softcap is not None:
        logits = hidden.softcap * torch.tanh(logits / hidden.softcap)
    processor = AutoProcessor.from_pretrained(tiny_student)
    stock = Gemma3nForConditionalGeneration.from_pretrained(tiny_student).eval()
    chat = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "How many beats?"}]}
    ]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = stock(**inputs).logits
    assert batch.student["input_ids"].tolist() == inputs["input_ids"].tolist()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_another_image_size_is_refused(tiny_student):
    with pytest.raises(
        ConfigError, match="image_size is only possible with type='medgemma', 'shikra' or 'perceptionGPT'"
    ):
        _load(tiny_student, image_size=112)
