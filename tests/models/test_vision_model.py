"""Vision model: shapes, taps, and equal gradients with and without checkpointing."""

import pytest
import torch
from timm.layers.config import use_reentrant_ckpt

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder.builder import load_pretrained
from mllm.models.vision_model import VisionModel

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
HEADS = dict(measures=dict(type="RegressionHead", measures=["EF", "EDV"], views=["ED", "ES"]))


@pytest.fixture
def student(tiny_student) -> VisionModel:
    args = ModelArgs("gemma3n-student", str(tiny_student), part="vision", lora_r=4, lora_target="vision", heads=HEADS)
    torch.manual_seed(0)
    return load_pretrained(args, CPU).model


@pytest.fixture
def teacher(tiny_medsiglip) -> VisionModel:
    return load_pretrained(ModelArgs("medsiglip", str(tiny_medsiglip), part="vision", lora_r=None), CPU).model.eval()


def _views(count: int, side: int) -> torch.Tensor:
    return torch.rand(count, 2, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_shapes_of_features_measures_and_taps(student: VisionModel):
    assert student.tap([0, "model.vision_tower.timm_model.blocks.2.1"], 2, grid=3) == [
        ("model.vision_tower.timm_model.blocks.0", 16),
        ("model.vision_tower.timm_model.blocks.2.1", 32),
    ]
    outputs = student(_views(4, student.side))
    assert outputs.hidden_BLD.shape == (4, 2, student.pretrained.config.text_config.hidden_size)
    assert outputs.heads["measures"].shape == (4, 2)
    assert [tuple(tap.shape) for tap in outputs.taps.values()] == [(4, 2, 16, 3, 3), (4, 2, 32, 3, 3)]
    assert outputs.vocabulary is None


@torch.no_grad()
def test_features_are_the_mean_over_the_patches_of_each_view(student: VisionModel):
    views = _views(2, student.side).double()  # in fp32 a batch of one and of four differ by 1e-6
    features = student.eval().double()(views).hidden_BLD
    for patient in range(2):
        for view in range(2):
            alone = student.pretrained.get_image_features(views[patient, view][None]).pooler_output
            mean = alone[0].mean(dim=0).float()
            torch.testing.assert_close(features[patient, view], mean, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_separate_images_have_equal_features_in_any_batch(teacher: VisionModel):
    teacher.separate_images = True
    teacher.tap(None, 2, grid=2)
    views = _views(5, teacher.side)
    whole, part = teacher(views), teacher(views[3:4, :1])
    for path, tap in whole.taps.items():
        assert torch.equal(tap[3:4, :1], part.taps[path])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(views).taps[path], tap), "what is cached must not depend on autocast"


def _gradients(model: VisionModel, views: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    outputs = model(views)
    (outputs.heads["measures"].sum() + sum(tap.square().mean() for tap in outputs.taps.values())).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_checkpointing_gives_the_same_gradients_and_is_never_reentrant(student: VisionModel):
    student.tap([0, 1, 2], 3, grid=2)
    student.train()
    views = _views(2, student.side)
    plain = _gradients(student, views)
    student.enable_checkpointing({"use_reentrant": False})
    assert student.pretrained.model.vision_tower.timm_model.grad_checkpointing and not use_reentrant_ckpt()
    spared = _gradients(student, views)
    assert plain.keys() == spared.keys() and sum("lora_A" in name for name in plain) > 20
    for name, gradient in plain.items():
        torch.testing.assert_close(spared[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_only_adapter_and_head_have_gradients(student: VisionModel):
    student.tap([0, 1, 2], 3, grid=2)
    student.train()
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)  # lora_B begins at zero, so lora_A has no gradient
    actual = _gradients(student, _views(2, student.side))
    assert all(".lora_" in name or name.startswith("heads.") for name in actual)
    towers = {student.tower_of(name) for name, gradient in actual.items() if gradient.any()}
    assert towers == {"vision", "heads"}
