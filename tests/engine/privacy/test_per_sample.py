"""Tests of per-sample gradients against one backward pass per sample through the logits of the model."""

import pytest
import torch
from torch import nn

from mllm.engine.learner import Learner
from mllm.engine.privacy.per_sample import PerSampleLinear, Tape, images_in, stacked
from mllm.errors import ConfigError
from mllm.models.encoding.packing import packing, row_lengths
from mllm.objectives.base import Objective
from mllm.structures import IGNORE, Outputs


def recorded(learner, tape, batch):
    """Return the gradients that the tape records for the sum of the losses of all samples."""
    with tape.recording(batch.samples, batch.images, row_lengths(batch.student)) as gradients:
        (learner(batch.student, batch.targets)["loss"] * batch.samples).backward()
    return dict(gradients)


def alone(parts, encoded):
    """Return the gradients of the mean cross-entropy of one sample, from the full logits of the model."""
    batch = parts.pad([encoded])
    logits = parts.bundle.model.pretrained(**batch.student).logits[:, :-1]
    labels = batch.targets["labels"][:, 1:]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    names, parameters = zip(*[item for item in parts.learner.named_parameters() if item[1].requires_grad], strict=True)
    if not loss.requires_grad:  # a sample without an image, where only the vision tower trains
        return {name: torch.zeros_like(parameter) for name, parameter in zip(names, parameters, strict=True)}
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, gradients, strict=True))


def distance(actual, true):
    return float((actual - true).norm() / true.norm())


@pytest.mark.parametrize("family", ["vaultgemma", "medgemma", "t5gemma", "gemma3n"])
def test_gradients_are_those_of_single_samples_to_1e_5(make_private, family):
    parts = make_private(family)
    expected = [alone(parts, encoded) for encoded in parts.encoded]
    tape = Tape(parts.learner)
    gradients = recorded(parts.learner, tape, parts.pad(parts.encoded))
    assert len(gradients) == len(tape.names) == len(expected[0])
    for parameter, name in tape.names.items():
        assert parameter.grad is None
        for row, single in enumerate(expected):
            assert distance(gradients[parameter][row], single[name]) < 1e-5, (name, row)
        assert distance(gradients[parameter][0], expected[1][name]) > 0.1, "samples are alike: the test proves nothing"


@pytest.mark.parametrize(
    ("family", "target"), [("vaultgemma", "language"), ("gemma3n", "language"), ("medgemma", "all")]
)
def test_gradients_of_packed_samples_are_those_of_single_samples(make_private, family, target):
    """Also those of a vision tower, whose rows are images."""
    parts = make_private(family, lora_target=target)
    expected = [alone(parts, encoded) for encoded in parts.encoded]
    parts.bundle.model.share_tokens(image_blocks=family == "medgemma")
    parts.bundle.model.enable_checkpointing({"use_reentrant": False})
    tape, numbers = Tape(parts.learner, images_in(parts.learner)), list(range(len(parts.encoded)))
    batch = packing(parts.pad)(parts.encoded, numbers, [0] * len(numbers))
    gradients = recorded(parts.learner, tape, batch)
    assert len(gradients) == len(tape.names) and (target == "language") == (batch.images == ())
    for parameter, name in tape.names.items():
        for row, single in enumerate(expected):
            if single[name].any():
                assert distance(gradients[parameter][row], single[name]) < 1e-5, (name, row)
            else:
                assert row == 1 and "vision" in name and not gradients[parameter][row].any()


def test_packed_layer_norms_and_biases_have_the_gradients_of_each_sample():
    torch.manual_seed(3)
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 2)).double()
    samples = [torch.randn(length, 4, dtype=torch.float64) for length in (3, 1, 5)]
    singles = [torch.autograd.grad(body(sample).square().sum(), list(body.parameters())) for sample in samples]
    tape = Tape(body)
    with tape.recording(3, lengths=[3, 1, 5]) as gradients:
        body(torch.cat(samples)[None]).square().sum().backward()
    for number, parameter in enumerate(tape.parameters):
        for row in range(3):
            assert distance(gradients[parameter][row], singles[row][number]) < 1e-12


@pytest.mark.parametrize("shape", [(1, 5, 2), (3, 2, 2), (6, 2)])
def test_layers_that_see_other_tokens_than_those_of_the_row_are_refused(shape):
    tape = Tape(nn.Sequential(nn.Linear(2, 2)))
    sentence = r"the layer 0 has inputs of shape \(.*\) for 6 tokens in one row, .*remove it from model_args"
    with pytest.raises(ConfigError, match=sentence), tape.recording(3, lengths=[3, 2, 1]):
        tape.layers["0"](torch.ones(shape))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_a_vision_tower_the_gradients_of_the_images_of_a_sample_are_summed(make_private, checkpointing):
    """Two images, none, one and one: as many images as samples, but with different indices."""
    parts = make_private("medgemma", lora_target="vision")
    expected = [alone(parts, encoded) for encoded in parts.encoded]
    if checkpointing:
        parts.bundle.model.enable_checkpointing({"use_reentrant": False})
    tape, batch = Tape(parts.learner, images_in(parts.learner)), parts.pad(parts.encoded)
    assert batch.images == (0, 0, 2, 3)
    gradients = recorded(parts.learner, tape, batch)
    assert len(gradients) == len(tape.names) > 8
    for parameter, name in tape.names.items():
        assert not gradients[parameter][1].any() and not expected[1][name].any()
        for row in (0, 2, 3):
            assert distance(gradients[parameter][row], expected[row][name]) < 1e-5, (name, row)


def test_lora_of_a_vision_model_and_a_regression_head_with_norms(make_private_vision):
    """The losses are computed explicitly: squared normalized errors, and the consistency of EF and volumes."""
    parts = make_private_vision()
    named = {name: parameter for name, parameter in parts.learner.named_parameters() if parameter.requires_grad}
    std, expected = torch.tensor([12.0, 45.0, 35.0], dtype=torch.float64), []
    for encoded in parts.encoded:
        batch = parts.pad([encoded])
        (predictions,), known = parts.bundle.model(**batch.student).heads["measures"], encoded.targets["measures_known"]
        loss = ((predictions - encoded.targets["measures"])[known] / std[known]).square().mean()
        loss = loss + 0.3 * (predictions[0] - 100 * (1 - predictions[2] / predictions[1].clamp_min(1.0))).abs() / std[0]
        expected.append(dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)))
    tape = Tape(parts.learner, images_in(parts.learner))
    gradients = recorded(parts.learner, tape, parts.pad(parts.encoded))
    assert {"student.heads.measures.norm.weight", "student.heads.measures.fusion.1.bias"} < named.keys()
    assert len(gradients) == len(named) > 20
    for parameter, name in tape.names.items():
        for row, single in enumerate(expected):
            assert distance(gradients[parameter][row], single[name]) < 1e-5, (name, row)
        assert distance(gradients[parameter][0], expected[1][name]) > 0.1, "samples are alike: the test proves nothing"


def test_a_layer_norm_over_several_positions_and_without_a_bias():
    torch.manual_seed(2)
    body = nn.Sequential(nn.LayerNorm(6), nn.Tanh(), nn.LayerNorm(6, bias=False)).double()
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.normal_()
    input = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    plain = body(input)
    singles = [torch.autograd.grad(body(row).square().sum(), [*body.parameters(), row]) for row in input.unsqueeze(1)]
    tape = Tape(body)
    with tape.recording(3) as gradients:
        output = body(input)
        output.square().sum().backward()
    torch.testing.assert_close(output, plain)
    for number, parameter in enumerate(tape.parameters):
        for row in range(3):
            assert distance(gradients[parameter][row], singles[row][number]) < 1e-12
            assert distance(input.grad[row], singles[row][-1][0]) < 1e-12


@pytest.mark.parametrize("family", ["vaultgemma", "gemma3n"])
def test_non_reentrant_checkpointing_changes_no_gradient(make_private, family):
    parts = make_private(family)
    tape, batch = Tape(parts.learner), parts.pad(parts.encoded)
    plain = recorded(parts.learner, tape, batch)
    model = parts.bundle.model.pretrained
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()
    calls = []
    model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    again = recorded(parts.learner, tape, batch)
    assert len(calls) == 2, "the layer must be computed a second time in the backward"
    for parameter, name in tape.names.items():
        torch.testing.assert_close(again[parameter], plain[parameter], rtol=1e-9, atol=1e-12, msg=name)


def test_under_bf16_autocast_gradients_keep_their_dtype_and_their_direction(make_private):
    parts = make_private("vaultgemma", torch.float32)
    tape, batch = Tape(parts.learner), parts.pad(parts.encoded)
    true = recorded(parts.learner, tape, batch)
    with tape.recording(4) as gradients:
        with torch.autocast("cpu", torch.bfloat16):
            loss = parts.learner(batch.student, batch.targets)["loss"] * 4
        loss.backward()
    for parameter, gradient in gradients.items():
        assert gradient.dtype is torch.float32
        assert distance(gradient, true[parameter]) < 0.1


def test_the_text_loss_is_divided_by_the_tokens_of_each_sample(make_private):
    """The loss computes its gradient in the forward pass over all tokens, divided by the count of each sample."""
    parts = make_private("vaultgemma")
    tape, batch = Tape(parts.learner), parts.pad(parts.encoded)
    objective = parts.learner.objectives["next_token"]
    gradients = recorded(parts.learner, tape, batch)
    objective.start = objective.end = 3.0
    thrice = recorded(parts.learner, tape, batch)
    counts = objective.count(batch.targets)
    assert len(set(counts.tolist())) == 4
    objective.tile_bytes = 5000  # several tiles, whose borders divide samples
    tiled = recorded(parts.learner, tape, batch)
    for parameter in gradients:
        assert distance(thrice[parameter], 3 * gradients[parameter]) < 1e-6
        assert distance(tiled[parameter], thrice[parameter]) < 1e-6


class Regressor(nn.Module):
    """A frozen layer, a trainable linear head on the mean state and one on every state."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 6).requires_grad_(False)
        self.head, self.each = nn.Linear(6, 2), nn.Linear(6, 2, bias=False)

    def forward(self, features):
        hidden = torch.tanh(self.body(features))
        measures = self.head(hidden.mean(dim=1)) + self.each(hidden).square().mean(dim=1) + self.each(hidden[:, 0])
        return Outputs(hidden, self.head, heads={"measures": measures})


class Squares(Objective):
    """The squared error of two measures, of which some are unknown."""

    def count(self, targets):
        return targets["known"].sum(dim=1)

    def total(self, context):
        error = context.student.heads["measures"] - context.targets["measures"]
        return (error.square() * context.targets["known"]).sum(dim=1)


def test_a_linear_regression_head_with_bias_used_several_times():
    torch.manual_seed(1)
    learner = Learner(Regressor().double(), {"squares": Squares()}, reduction="samples")
    student = {"features": torch.randn(3, 4, 5, dtype=torch.float64)}
    known = torch.tensor([[1, 1], [1, 0], [0, 1]])
    targets = {"measures": torch.randn(3, 2, dtype=torch.float64), "known": known}
    trainable = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    expected = []
    for row in range(3):
        error = learner.student(student["features"][row : row + 1]).heads["measures"][0] - targets["measures"][row]
        loss = (error.square() * known[row]).sum() / known[row].sum()
        expected.append(torch.autograd.grad(loss, trainable))
    tape = Tape(learner)
    with tape.recording(3) as gradients:
        (learner(student, targets)["loss"] * 3).backward()
    assert tape.parameters == trainable
    assert len(gradients) == 3
    for number, parameter in enumerate(trainable):
        for row in range(3):
            assert distance(gradients[parameter][row], expected[row][number]) < 1e-12


def test_outside_of_a_recording_a_layer_is_an_ordinary_linear_layer(make_private):
    parts = make_private("vaultgemma")
    batch = parts.pad(parts.encoded)
    before = parts.learner(batch.student, batch.targets)["loss"]
    state = {name: tensor.clone() for name, tensor in parts.learner.state_dict().items()}
    tape = Tape(parts.learner)
    after = parts.learner(batch.student, batch.targets)["loss"]
    after.backward()
    assert torch.equal(before, after)
    assert all(parameter.grad is not None for parameter in tape.parameters)
    assert state.keys() == parts.learner.state_dict().keys()
    assert all(isinstance(layer, nn.Linear) and type(layer) is PerSampleLinear for layer in tape.layers.values())


def test_parameters_without_influence_have_zero_gradients():
    first, second = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    tape = Tape(nn.ModuleList([first, second]))
    with tape.recording(3) as gradients:
        first(torch.ones(3, 2)).sum().backward()
        one, two = stacked(gradients, tape.parameters, 3)
    assert torch.equal(one, torch.ones(3, 2))
    assert torch.equal(two, torch.zeros(3, 2))


def test_parameters_are_grouped_by_layer_and_a_shared_one_counts_once():
    body = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    body[2].weight = body[1].weight
    assert Tape(body).groups == [[0, 1], [2, 3], [4]]


def test_wrong_numbers_of_image_rows_are_refused():
    """Patches instead of images, or images without a sample."""
    tape = Tape(nn.ModuleDict({"vision": nn.Linear(2, 2)}), lambda name: name == "vision")
    for images, count in (((0, 0, 1), 3), ((), 0)):
        sentence = f"the layer vision has 6 rows for {count} images, .*remove it from model_args.lora_target"
        with pytest.raises(ConfigError, match=sentence), tape.recording(2, images):
            tape.layers["vision"](torch.ones(6, 2))


def test_wrong_numbers_of_sample_rows_are_refused():
    layer = nn.Linear(2, 2)
    tape = Tape(nn.Sequential(layer))
    sentence = "the layer 0 has 6 rows for 3 samples, .*remove it from model_args.lora_target"
    with pytest.raises(ConfigError, match=sentence), tape.recording(3):
        layer(torch.ones(6, 2))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(1, 1, 3), r"Conv2d \(Conv2d\) is trainable, and only Linear layers"),
        (nn.Sequential(nn.Linear(2, 2), nn.Embedding(2, 2)), r"1 \(Embedding\) is trainable"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False), "1 is a BatchNorm, which mixes"),
        (nn.Linear(2, 2).requires_grad_(False), "the model has no trainable tensor"),
    ],
)
def test_layers_without_per_sample_gradients_are_refused(module, message):
    with pytest.raises(ConfigError, match=message):
        Tape(module)
