"""Converted checkpoints have the logits of the original computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from mllm.errors import ConfigError
from mllm.models.shikra.conversation import PREFACE
from mllm.models.shikra.convert import convert

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8))


def features(clip: Path, projector: dict[str, Tensor]) -> Tensor:
    """Return the output [1, 64, D] of the original projector for an image."""
    pixels = AutoImageProcessor.from_pretrained(clip)(IMAGE, return_tensors="pt")["pixel_values"]
    states = CLIPVisionModel.from_pretrained(clip)(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    names = [name.removeprefix("model.mm_projector.").removesuffix("weight") for name in projector if "weight" in name]
    for number, part in enumerate(names):
        states = torch.nn.functional.gelu(states) if number else states
        layer = [projector[f"model.mm_projector.{part}{kind}"] for kind in ("weight", "bias")]
        states = torch.nn.functional.linear(states, *layer)
    return states


@pytest.mark.parametrize("is_shikra", [True, False])
@torch.inference_mode()
def test_logits_equal_those_of_the_original_computation(
    original, make_projector, tiny_llama, tiny_clip, tmp_path, is_shikra
):
    source = original(is_shikra)
    folder = convert(source, tmp_path / "converted")
    model, processor = LlavaForConditionalGeneration.from_pretrained(folder), LlavaProcessor.from_pretrained(folder)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is it?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    batch = processor(text=text, images=IMAGE, return_tensors="pt")
    logits = model(**batch).logits

    tokenizer = AutoTokenizer.from_pretrained(source)
    language = LlamaForCausalLM.from_pretrained(tiny_llama)
    if is_shikra:
        torch.manual_seed(0)
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = batch["input_ids"][0]
    places = (ids == processor.image_token_id).nonzero().squeeze(1)
    assert places.tolist() == list(range(int(places[0]), int(places[0]) + 64))
    parts = [ids[: places[0]], ids[places[-1] + 1 :]]
    around = ("<im_start>", "<im_end> ") if is_shikra else ("", "\n")
    assert tokenizer.decode(parts[0]).replace(" ", "") == f"<s>{PREFACE} USER: {around[0]}".replace(" ", "")
    assert tokenizer.decode(parts[1]).strip(" ") == f"{around[1]}Where is it? ASSISTANT:"
    patches = features(tiny_clip, make_projector(single=is_shikra))
    words = [language.get_input_embeddings()(part[None]) for part in parts]
    expected = language(inputs_embeds=torch.cat([words[0], patches, words[1]], dim=1)).logits
    assert logits.shape[1] == expected.shape[1]
    torch.testing.assert_close(logits[..., : expected.shape[-1]], expected, rtol=0, atol=1e-5)
    blank = model(**{**batch, "pixel_values": torch.zeros_like(batch["pixel_values"])}).logits
    assert (blank - logits)[0, -1].abs().max() > 1e-2, "the image is not seen"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.vision_resampler.x": torch.ones(1)}, "it has the unknown tensor model.vision_resampler.x"),
        ({"model.norm.weight": torch.full((192,), 1e-3)}, "is a delta, the difference to a LLaMA"),
        ({"model.mm_projector.4.weight": torch.ones(1)}, "has 4.weight, 0.bias, .* but a projector has"),
    ],
)
def test_other_checkpoints_are_refused(original, tmp_path, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        convert(original(False, **changes), tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_a_delta_is_recognized_by_its_name(original, tmp_path):
    with pytest.raises(ConfigError, match="is a delta, the difference to a LLaMA"):
        convert(original(True, name="shikra-7b-delta-v1"), tmp_path / "converted")


def test_a_missing_weight_file_is_reported(original, tmp_path):
    source = original(False)
    (source / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(ConfigError, match=r"lacks \d+ tensors of a LLaVA|but a projector has"):
        convert(source, tmp_path / "converted")


def test_folders_of_other_kinds_are_named_in_the_message(tiny_llava, tiny_llama, tmp_path):
    with pytest.raises(ConfigError, match="needs no conversion"):
        convert(tiny_llava, tmp_path / "out")
    with pytest.raises(ConfigError, match="is a 'llama' checkpoint, not LLaVA 1.5 or Shikra"):
        convert(tiny_llama, tmp_path / "out")
    with pytest.raises(ConfigError, match="is not a folder with a config.json"):
        convert(tmp_path / "absent", tmp_path / "out")
