"""Type `image-text`: two families without code of their own, by config only."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from family_checkpoints.image_text import gemma4_unified
from family_checkpoints.latest_image_text import cosmos3_edge
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BertConfig

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.auto.towers import find_targets, find_towers
from mllm.models.builder.builder import load_encoder, load_pretrained
from mllm.structures import Sample, Turn

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (84, 112, 3), dtype=np.uint8)) for seed in range(2)
]


def args(folder: Path, **changes: object) -> ModelArgs:
    return ModelArgs(
        type="image-text", model_name_or_path=str(folder), **{"lora_r": 4, "lora_target": "all", **changes}
    )


@pytest.fixture(params=["llava", "qwen2_vl"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.mark.parametrize("quantized", [{}, {"load_in_4bit": True}, {"load_in_8bit": True}])
def test_every_part_of_the_adapter_gets_a_gradient(folder: Path, quantized: dict[str, bool]) -> None:
    bundle = load_pretrained(args(folder, **quantized), CPU)
    samples = [
        Sample([Turn("user", "<image>What is it?"), Turn("assistant", answer)], [picture])
        for picture, answer in zip(PICTURES, ["CT", "ultrasound image"], strict=True)
    ]
    batch = bundle.encoder.pad([bundle.encoder.encode(sample) for sample in samples])
    trainable = {name: tensor for name, tensor in bundle.model.named_parameters() if tensor.requires_grad}
    with torch.no_grad():
        for name, tensor in trainable.items():
            if "lora_B" in name:
                tensor.normal_(std=0.02)
    outputs = bundle.model(**batch.student)
    logits = outputs.vocabulary(outputs.hidden_BLD[:, :-1]).float()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets["labels"][:, 1:].flatten()).backward()
    assert {bundle.model.tower_of(name) for name in trainable} == {"language", "vision"}
    assert [name for name, tensor in trainable.items() if tensor.grad is None or not tensor.grad.any()] == []


def skeleton(folder: Path) -> object:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))


def test_towers(tiny_llava: Path, tiny_qwen2_vl: Path, tiny_medgemma: Path) -> None:
    llava = {
        "projector": "model.multi_modal_projector",
        "vision": "model.vision_tower",
        "language": "model.language_model",
    }
    assert find_towers(skeleton(tiny_llava)) == find_towers(skeleton(tiny_medgemma)) == llava
    qwen = find_towers(skeleton(tiny_qwen2_vl))
    assert list(qwen.items()) == [
        ("projector", "model.visual.merger"),
        ("vision", "model.visual"),
        ("language", "model.language_model"),
    ]


def test_targets_leave_out_the_projector_and_unused_layers(tiny_llava: Path, tiny_qwen2_vl: Path) -> None:
    def matched(folder: Path) -> list[str]:
        model = skeleton(folder)
        pattern = re.compile(find_targets(model)["vision"])
        return [name for name, _ in model.named_modules() if pattern.fullmatch(name)]

    # LLaVA reads hidden state -2 of two layers: the output of layer 0
    llava = matched(tiny_llava)
    assert len(llava) == 6 and all(".layers.0." in name for name in llava)
    qwen = matched(tiny_qwen2_vl)
    assert len(qwen) == 2 * 4 and not any("merger" in name for name in qwen)


MASKS = {"heads": {"mask": {"type": "MaskHead", "dim": 64}}, "box_format": {"type": "perception_token"}}


def test_parts_that_need_a_vision_tower_are_refused_in_a_model_that_projects_patches(tmp_path: Path) -> None:
    model, processor = gemma4_unified()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    refused = "a MaskHead needs a vision tower that .*, which .*nified.* does not: remove the MaskHead"
    for build in (load_encoder, lambda options: load_pretrained(options, CPU)):
        with pytest.raises(ConfigError, match=refused):
            build(args(tmp_path, **MASKS))
    box = {"heads": {"box": {"type": "BoxHead", "attention": 16}}}
    with pytest.raises(ConfigError, match="a BoxHead with attention needs .* does not: remove attention from the Box"):
        load_encoder(args(tmp_path, **box))
    with pytest.raises(ConfigError, match="fuse_vision_layers=True needs a LLaVA"):
        load_pretrained(args(tmp_path, fuse_vision_layers=True), CPU)
    with pytest.raises(ConfigError, match="lora_target = 'vision' matches no layer"):
        load_pretrained(args(tmp_path, lora_target="vision"), CPU)


def test_a_mask_head_on_a_tower_without_a_square_grid_is_refused_before_weights_are_loaded(
    tiny_qwen2_vl: Path,
) -> None:
    with pytest.raises(ConfigError, match="one square grid of patches, which 'qwen2_vl' does not"):
        load_encoder(args(tiny_qwen2_vl, **MASKS))


def test_models_without_images_are_refused(tmp_path: Path, tiny_llava: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="is a 'bert' model"):
        load_pretrained(args(tmp_path), CPU)
    with pytest.raises(ConfigError, match="model_args.image_size is only possible with type='medgemma'"):
        load_pretrained(args(tiny_llava, image_size=448), CPU)


def test_kinds_of_tokens_are_asked_of_one_processor(tmp_path: Path) -> None:
    """Cosmos3 Edge needs `mm_token_type_ids`; its class and the files of the checkpoint stay as they are."""
    model, stock = cosmos3_edge()
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    stock.save_pretrained(folder)
    encoder = load_encoder(args(folder))
    sample = Sample([Turn("user", "<image>What is it?"), Turn("assistant", "CT")], PICTURES[:1])
    assert "mm_token_type_ids" in encoder.encode(sample).student
    text = "<|vision_start|><|image_pad|><|vision_end|>What is it?"
    assert "mm_token_type_ids" not in AutoProcessor.from_pretrained(folder)(text=[text], images=PICTURES[:1])
    encoder.processor.save_pretrained(tmp_path / "saved")
    stock.save_pretrained(tmp_path / "stock")
    saved, expected = ((tmp_path / name / "processor_config.json").read_text() for name in ("saved", "stock"))
    assert saved == expected
