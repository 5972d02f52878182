"""Tests of feature distillation: sums by hand, trained tensors, and refused settings."""

import copy

import pytest
import torch

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.engine.learner import Learner
from mllm.errors import ConfigError
from mllm.models.builder.builder import load_pretrained
from mllm.objectives.features import FeatureMatch
from mllm.protocols import Bundle
from mllm.structures import Context, Outputs

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
HEADS = dict(measures=dict(type="RegressionHead", measures=["EF"], views=["ED", "ES"]))


@pytest.fixture(scope="module")
def teacher(tiny_medsiglip) -> Bundle:
    return load_pretrained(ModelArgs("medsiglip", str(tiny_medsiglip), part="vision", lora_r=None), CPU)


def _student(path, **options) -> Bundle:
    options = dict(lora_r=4, lora_target="vision") | options
    return load_pretrained(ModelArgs("gemma3n-student", str(path), part="vision", heads=HEADS, **options), CPU)


def _inputs(student: Bundle, teacher: Bundle, count: int = 3):
    generator = torch.Generator().manual_seed(0)
    sides = (student.model.side, teacher.model.side)
    views = [torch.rand(count, 2, 3, side, side, generator=generator) for side in sides]
    known = torch.ones(count, 2, dtype=torch.bool)
    return {"pixel_values": views[0]}, {"views_known": known}, {"pixel_values": views[1]}


def _learner(student: Bundle, teacher: Bundle, **options) -> Learner:
    objective = FeatureMatch(**options)
    objective.connect(student, teacher)
    return Learner(student.model, {"feature_match": objective}, teacher.model)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize("grid", [1, 3])
def test_the_loss_is_the_weighted_mean_by_hand(tiny_student, teacher: Bundle, distance: str, grid: int):
    student = _student(tiny_student)
    weights = [1.0, 3.0]
    learner = _learner(
        student,
        teacher,
        student_layers=[0, 2],
        teacher_layers=[1, 3],
        grid=grid,
        distance=distance,
        layer_weights=weights,
    ).eval()
    images, targets, taught = _inputs(student, teacher)
    targets["views_known"][1, 1] = False
    ours, theirs = student.model(**images).taps, teacher.model(**taught).taps
    objective = learner.named_objectives()[0][1]
    expected = torch.zeros(3, 2)
    for weight, projector, (narrow, wide) in zip(weights, objective.projectors, objective.paths, strict=True):
        for patient in range(3):
            for view in range(2):
                cells = []
                for row in range(grid):
                    for column in range(grid):
                        projected = projector(ours[narrow][patient, view, :, row, column])
                        true = theirs[wide][patient, view, :, row, column]
                        angle = torch.nn.functional.cosine_similarity(projected, true, dim=0)
                        cells.append(((projected - true) ** 2).mean() if distance == "mse" else 1 - angle)
                expected[patient, view] += weight / 4 * torch.stack(cells).mean()
    expected[1, 1] = 0
    actual = objective.total(
        Context(targets, Outputs(torch.zeros(3, 2, 1), taps=ours), Outputs(torch.zeros(3, 2, 1), taps=theirs))
    )
    torch.testing.assert_close(actual, expected.sum(dim=1), rtol=1e-4, atol=1e-6)
    assert objective.count(targets).tolist() == [2, 1, 2]


def test_all_weights_in_half_precision_can_be_trained(tiny_student, teacher: Bundle):
    """As DeepSpeed does with bf16."""
    learner = _learner(_student(tiny_student), teacher, student_layers=[0, 2], teacher_layers=[1, 3]).eval()
    student, targets, taught = _inputs(_student(tiny_student), teacher)
    full = learner(student, targets, taught)["loss"].detach()
    half = copy.deepcopy(learner.objectives).bfloat16()
    learner.objectives = half
    loss = learner(student, targets, taught)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(full.item(), rel=0.02)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in half.parameters())


def test_student_vision_has_gradients_and_the_teacher_none(tiny_student, teacher: Bundle):
    student = _student(tiny_student)
    learner = _learner(student, teacher).train()
    learner(*_inputs(student, teacher))["loss"].backward()
    named = dict(learner.named_parameters())
    assert not any(name.startswith("teacher.") and named[name].grad is not None for name in named)
    blocks = [name for name in named if "timm_model.blocks.1" in name and "lora_B" in name]
    assert blocks and all(named[name].grad.abs().sum() > 0 for name in blocks)
    assert not learner.teacher.training


def test_the_feature_loss_falls_and_not_by_the_projectors_alone(tiny_student, teacher: Bundle):
    """In GEMMA 3NCORE, detached features moved the projectors only."""
    student = _student(tiny_student, train_vision=True, lora_r=None, lora_target=None)
    learner = _learner(student, teacher, grid=2)
    inputs = _inputs(student, teacher)
    with torch.no_grad():
        first = student.model(**inputs[0]).taps
    trained = [p for name, p in learner.named_parameters() if p.requires_grad and "projectors" not in name]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    losses = []
    for _ in range(12):
        loss = learner(*inputs)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        assert all(not torch.equal(tap, first[path]) for path, tap in student.model(**inputs[0]).taps.items())


def test_a_student_without_gradient_is_refused_by_name(tiny_student, teacher: Bundle):
    """The published hooks detached the student's features; a frozen tower has the same effect."""
    student = _student(tiny_student)
    learner = _learner(student, teacher).train()
    for name, parameter in student.model.named_parameters():
        if "vision_tower" in name:
            parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"has no effect: model.vision_tower.timm_model.blocks.0 .* no gradient"):
        learner(*_inputs(student, teacher))


def test_projectors_have_equal_initial_weights_in_every_process(tiny_student, teacher: Bundle):
    student = _student(tiny_student)
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        objective = FeatureMatch()
        objective.connect(student, teacher)
        states.append(objective.state_dict())
    assert states[0].keys() == states[1].keys() and len(states[0]) == 6
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (dict(grid=0), "grid must be at least 1"),
        (dict(distance="l1"), "distance must be 'mse' or 'cosine', not 'l1'"),
        (dict(student_layers=[0, 1], teacher_layers=[0]), "reads 2 layers of the student, but teacher_layers has 1"),
        (dict(layer_weights=[1.0]), "layer_weights has 1"),
        (dict(layer_weights=[0.0, 0.0, 0.0]), "not all 0"),
    ],
)
def test_invalid_settings_are_refused(wrong, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        FeatureMatch(**wrong)


def test_a_missing_teacher_is_refused(tiny_student, teacher: Bundle):
    student = _student(tiny_student)
    learner = _learner(student, teacher)
    images, targets, _ = _inputs(student, teacher)
    with pytest.raises(ConfigError, match="FeatureMatch needs a teacher: set distill_args"):
        learner(images, targets)
