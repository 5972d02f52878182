"""Vision parts as students and teachers: trained parameters and refused settings."""

import math
from dataclasses import asdict

import pytest
import timm
import torch
from torch import nn

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.export.facts import Facts
from mllm.models.adapters.trainable import count_trainable
from mllm.models.builder.build_vision_part import tower_targets
from mllm.models.builder.builder import load_pretrained
from mllm.registry import EXPORTERS

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
HEADS = dict(measures=dict(type="RegressionHead", measures=["EF"], views=["ED", "ES"]))


def _student(path, **more):
    options = dict(part="vision", lora_r=4, lora_target="vision", heads=HEADS) | more
    return load_pretrained(ModelArgs("gemma3n-student", str(path), **options), CPU)


def _convolutions(module: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)}


class Shell(nn.Module):
    """Module with a vision tower at the path of Gemma 3n."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.vision_tower = nn.Module()
        self.model.vision_tower.timm_model = tower


def test_lora_targets_are_all_dense_convolutions_of_mobilenet_v5():
    """Of 282 convolutions 45 are depthwise; the dense ones include the attention projections."""
    import re

    with torch.device("meta"):
        shell = Shell(timm.create_model("mobilenetv5_300m_enc", pretrained=False))
    convolutions = _convolutions(shell)
    pattern = re.compile(tower_targets(shell, "model.vision_tower"))
    met = {name for name, _ in shell.named_modules() if pattern.fullmatch(name)}
    assert met == {name for name, layer in convolutions.items() if layer.groups == 1}
    assert (len(convolutions), len(met)) == (282, 237)
    assert {"query", "key", "value", "output"} <= {name.split(".")[-2] for name in met}


def test_the_student_trains_lora_in_its_vision_and_the_head(tiny_student):
    model = _student(tiny_student).model
    convolutions = _convolutions(model)
    adapted = [name for name in convolutions if ".lora_A." in name]
    dense = [name for name, layer in convolutions.items() if layer.groups == 1 and ".lora_" not in name]
    assert len(adapted) == len(dense) == 27
    rows = {row.tower: row for row in count_trainable(model)}
    assert rows["vision"].parameters > 0 and rows["heads"].parameters > 0
    assert rows["projector"].parameters == 0
    assert "language" not in rows and "audio" not in rows


def test_every_adapted_convolution_changes_the_features(tiny_student):
    """LoRA in an unused layer would be counted but not trained (the second defect of GEMMA 3NCORE)."""
    model = _student(tiny_student).model.train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    model(torch.rand(2, 2, 3, 96, 96)).heads["measures"].sum().backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []


def test_a_depthwise_convolution_is_refused_with_the_reason(tiny_student):
    with pytest.raises(ConfigError, match="depthwise|groups"):
        _student(tiny_student, lora_target=r".*dw_start\.conv")


def test_the_full_tower_trains_in_fp32(tiny_student):
    model = _student(tiny_student, train_vision=True, lora_r=None, lora_target=None).model
    tower = dict(model.pretrained.model.vision_tower.named_parameters())
    assert all(parameter.requires_grad and parameter.dtype is torch.float32 for parameter in tower.values())
    assert len([name for name in model.trained_state() if name.startswith("vision.")]) == len(tower)


def test_a_continued_head_keeps_its_mean_and_std(tiny_student, tmp_path):
    """Another training split has another mean, with which the same weights would predict other values."""
    trained = _student(tiny_student)
    trained.model.head.normalize({"EF": [40.0, 60.0]})
    for name, parameter in trained.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    args = ModelArgs("gemma3n-student", str(tiny_student), part="vision", lora_r=4, lora_target="vision", heads=HEADS)
    facts = Facts(str(tiny_student), asdict(args))
    EXPORTERS.find("adapter")(trained, tmp_path / "adapter", facts=facts)
    pixels = torch.rand(1, 2, 3, trained.model.side, trained.model.side)
    continued = _student(tiny_student, adapter_path=str(tmp_path / "adapter"), lora_r=None)
    continued.model.head.normalize({"EF": [10.0, 20.0, 30.0]})
    with torch.no_grad():
        actual, true = (one.model.eval()(pixels).heads["measures"] for one in (continued, trained))
    torch.testing.assert_close(actual, true)
    fresh = _student(tiny_student).model.head
    fresh.normalize({"EF": [10.0, 20.0, 30.0]})
    assert float(fresh.mean) == 20


def test_a_teacher_is_frozen_and_has_no_head(tiny_medgemma, tiny_medsiglip):
    for kind, path in (("medgemma", tiny_medgemma), ("medsiglip", tiny_medsiglip)):
        bundle = load_pretrained(ModelArgs(kind, str(path), part="vision", lora_r=None), CPU)
        assert bundle.model.head is None and not any(p.requires_grad for p in bundle.model.parameters())


def test_an_encoder_returns_images_of_the_size_of_the_checkpoint(tiny_student, tiny_medsiglip):
    student = _student(tiny_student)
    assert (student.model.side, student.encoder.tokens) == (96, 9)
    teacher = load_pretrained(ModelArgs("medsiglip", str(tiny_medsiglip), part="vision", lora_r=None), CPU)
    assert (teacher.model.side, teacher.encoder.tokens) == (112, math.isqrt(teacher.encoder.tokens) ** 2)


def test_an_image_size_is_refused(tiny_student):
    with pytest.raises(ConfigError, match="model_args.image_size is (only|not) possible with"):
        _student(tiny_student, image_size=112)
