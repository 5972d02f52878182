"""Type `shikra`: loaded or composed models, outputs equal to those of transformers, and the requested trained parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from mllm.config.hardware import Hardware
from mllm.errors import ConfigError
from mllm.models.builder.builder import load_pretrained
from mllm.models.shikra.options import ShikraArgs
from mllm.protocols import Bundle
from mllm.structures import Mark, Sample, Turn

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (84, 112, 3), dtype=np.uint8))
SAMPLE = Sample(
    [Turn("user", "<image> Where is it?"), Turn("assistant", "Answer: <box> .", ((0,),))],
    [PICTURE],
    marks=[Mark(box=(28, 14, 56, 70))],
)


def build(folder: Path, **changes: object) -> Bundle:
    changes = {"lora_r": 4, **changes}
    return load_pretrained(ShikraArgs(type="shikra", model_name_or_path=str(folder), **changes), CPU)


@pytest.fixture(params=["read", "composed"])
def parts(request: pytest.FixtureRequest, tiny_shikra: Path, tiny_llama: Path, tiny_clip: Path) -> dict[str, object]:
    """Return the arguments of a LLaVA, and of a LLaMA with a CLIP."""
    if request.param == "read":
        return {"folder": tiny_shikra}
    return {"folder": tiny_llama, "vision_tower": str(tiny_clip)}


def logits(bundle: Bundle, sample: Sample = SAMPLE) -> torch.Tensor:
    outputs = bundle.model(**bundle.encoder.pad([bundle.encoder.encode(sample)]).student)
    return outputs.vocabulary(outputs.hidden_BLD)


@torch.inference_mode()
def test_outputs_equal_those_of_transformers(tiny_shikra: Path) -> None:
    bundle = build(tiny_shikra)
    stock = LlavaForConditionalGeneration.from_pretrained(tiny_shikra)
    batch = bundle.encoder.pad([bundle.encoder.encode(SAMPLE)])
    torch.testing.assert_close(logits(bundle), stock(**batch.student).logits, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_composed_model_has_the_weights_of_its_parts(tiny_llama: Path, tiny_clip: Path) -> None:
    bundle = build(tiny_llama, vision_tower=str(tiny_clip), mm_vision_select_layer=-1)
    batch = bundle.encoder.pad([bundle.encoder.encode(SAMPLE)]).student
    language = LlamaForCausalLM.from_pretrained(tiny_llama)
    states = CLIPVisionModel.from_pretrained(tiny_clip)(batch["pixel_values"], output_hidden_states=True)
    features = bundle.model.pretrained.model.multi_modal_projector(states.hidden_states[-1][:, 1:])
    ids = batch["input_ids"][0]
    places = (ids == bundle.encoder.tokenizer.convert_tokens_to_ids("<image>")).nonzero().squeeze(1)
    assert len(places) == 64 == features.shape[1]
    known = language.config.vocab_size
    embedded = language.get_input_embeddings()(ids.clamp_max(known - 1))[None]
    embedded[0, places] = features[0]
    expected = language(inputs_embeds=embedded).logits
    torch.testing.assert_close(logits(bundle)[..., :known], expected, rtol=0, atol=1e-5)


def test_the_rows_that_were_added_are_the_same_in_every_process(tiny_llama: Path, tiny_clip: Path) -> None:
    one, other = (build(tiny_llama, vision_tower=str(tiny_clip)).model.pretrained.state_dict() for _ in range(2))
    assert [name for name in one if "lora_" not in name and not torch.equal(one[name], other[name])] == []
    grown = AutoTokenizer.from_pretrained(tiny_llama)
    assert len(one["lm_head.weight"]) == len(grown) + 2, "<image> and <pad>"


def test_images_are_padded_and_boxes_written_in_the_square(parts: dict[str, object], tiny_clip: Path) -> None:
    bundle = build(**parts)
    encoded = bundle.encoder.encode(SAMPLE)
    words = encoded.targets["labels"]
    answer = bundle.encoder.tokenizer.decode(words[words >= 0])
    assert answer.replace(" ", "") == "Answer:[0.250,0.250,0.500,0.750].</s>", "14 pixels were put above"
    square = Image.new("RGB", (112, 112), (122, 116, 104))
    square.paste(PICTURE, (0, 14))
    expected = AutoImageProcessor.from_pretrained(tiny_clip)(square, return_tensors="pt")["pixel_values"]
    # The color of the margin may be rounded up or down.
    torch.testing.assert_close(encoded.student["pixel_values"], expected, rtol=0, atol=0.02)
    whole = bundle.encoder.tokenizer.decode(encoded.student["input_ids"])
    assert (
        "assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. USER: " in whole
    )


@pytest.mark.parametrize(
    ("changes", "towers"),
    [
        ({}, {"language", "projector"}),
        ({"lora_target": "all"}, {"language", "vision", "projector"}),
        ({"freeze_mm_mlp_adapter": True}, {"language"}),
        ({"freeze_backbone": True}, {"projector"}),
        ({"tune_mm_mlp_adapter": True}, {"projector"}),
        ({"freeze_backbone": True, "box_format": {"type": "location_tokens", "num_bins": 11}}, {"projector", "rows"}),
        ({"load_in_4bit": True}, {"language", "projector"}),
    ],
)
def test_exactly_the_requested_parts_train(parts: dict[str, object], changes: dict, towers: set[str]) -> None:
    bundle = build(**parts, **changes)
    trainable = {name: tensor for name, tensor in bundle.model.named_parameters() if tensor.requires_grad}
    assert {bundle.model.tower_of(name) for name in trainable} == towers
    assert all(tensor.dtype is torch.float32 for tensor in trainable.values())
    with torch.no_grad():
        for name, tensor in trainable.items():
            if "lora_B" in name:
                tensor.normal_(std=0.02)
    labels = bundle.encoder.encode(SAMPLE).targets["labels"]
    torch.nn.functional.cross_entropy(logits(bundle)[0, :-1].float(), labels[1:]).backward()
    assert [name for name, tensor in trainable.items() if tensor.grad is None or not tensor.grad.any()] == []


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("frozen", [True, False])
def test_half_precision_runs(parts: dict[str, object], precision: str, frozen: bool) -> None:
    folder, rest = parts["folder"], {key: value for key, value in parts.items() if key != "folder"}
    hardware = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2, precision)
    args = ShikraArgs("shikra", str(folder), lora_r=4, freeze_mm_mlp_adapter=frozen, **rest)
    bundle = load_pretrained(args, hardware)
    exact = logits(build(**parts)).float()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        near = logits(bundle).float()
    assert near.isfinite().all() and (near - exact).abs().max() < 0.1 * exact.abs().max()


def drawn(widths: tuple[tuple[int, int], ...]) -> dict[str, torch.Tensor]:
    """Return a random projector in LLaVA's layout: one layer, or the first and third of a Sequential."""
    state = {}
    for number, shape in enumerate(widths):
        part = "" if len(widths) == 1 else f"{2 * number}."
        state[f"model.mm_projector.{part}weight"] = torch.randn(shape)
        state[f"model.mm_projector.{part}bias"] = torch.randn(shape[0])
    return state


def test_a_pretrained_projector_is_loaded(tmp_path: Path, tiny_shikra: Path, tiny_llama: Path, tiny_clip: Path):
    double, single = drawn(((128, 64), (128, 128))), drawn(((192, 64),))
    torch.save(double, tmp_path / "mm_projector.bin")
    save_file(single, tmp_path / "single.safetensors")
    model = build(tiny_shikra, pretrain_mm_mlp_adapter=str(tmp_path / "mm_projector.bin")).model.pretrained
    assert torch.equal(model.model.multi_modal_projector.linear_2.bias, double["model.mm_projector.2.bias"])
    path = str(tmp_path / "single.safetensors")
    model = build(tiny_llama, vision_tower=str(tiny_clip), pretrain_mm_mlp_adapter=path).model.pretrained
    patches = torch.randn(3, 64)
    expected = torch.nn.functional.linear(patches, *single.values())
    torch.testing.assert_close(model.model.multi_modal_projector(patches), expected)
    with pytest.raises(ConfigError, match="is for projector_hidden_act 'linear', but .* has 'gelu'"):
        build(tiny_shikra, pretrain_mm_mlp_adapter=path)
    with pytest.raises(ConfigError, match=r"linear_1.weight has shape \(128, 64\), but the model needs \(192, 64\)"):
        build(tiny_llama, vision_tower=str(tiny_clip), pretrain_mm_mlp_adapter=str(tmp_path / "mm_projector.bin"))


def test_other_checkpoints_are_refused(tiny_medgemma: Path, tiny_llama: Path, tiny_shikra: Path, tiny_clip: Path):
    with pytest.raises(ConfigError, match="is a 'llama' model: set vision_tower to a CLIP"):
        build(tiny_llama)
    with pytest.raises(ConfigError, match="is a 'gemma3' model: use type='medgemma'"):
        build(tiny_medgemma)
    with pytest.raises(ConfigError, match="is a 'llava' model: remove vision_tower"):
        build(tiny_shikra, vision_tower=str(tiny_clip))
    with pytest.raises(ConfigError, match="is a 'llama' model, but must be a CLIP"):
        build(tiny_llama, vision_tower=str(tiny_llama))
    with pytest.raises(ConfigError, match="the vision tower has 2 layers, so it must be from -3 to 2"):
        build(tiny_llama, vision_tower=str(tiny_clip), mm_vision_select_layer=-9)


def test_the_tower_determines_the_size_and_tokens_of_images(parts: dict[str, object]) -> None:
    build(**parts, image_size=112, image_token_len=64)
    with pytest.raises(ConfigError, match="image_token_len=256, but the vision tower of type='shikra' gives 64"):
        build(**parts, image_token_len=256)
    with pytest.raises(ConfigError, match="image_size=224, but the vision tower of type='shikra' gives 112"):
        build(**parts, image_size=224)
