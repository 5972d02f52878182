"""Tests of the check of per-sample gradients: wrong gradients, and models that mix the samples of a batch."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mllm.engine.privacy.per_sample import PerSampleLayerNorm, PerSampleLinear, Tape, images_in
from mllm.engine.privacy.proof import check_gradients
from mllm.errors import ConfigError


@pytest.fixture
def check(make_private):
    """Check the model of a family after `change(learner)`."""

    def run(family="vaultgemma", change=None, dtype=torch.float32, **options):
        parts = make_private(family, dtype, **options)
        if change is not None:
            change(parts.learner)
        tape, state = Tape(parts.learner), torch.random.get_rng_state()
        check_gradients(
            parts.learner, tape, [parts.pad(parts.encoded)], parts.pad(parts.encoded[-1:]), Accelerator(cpu=True)
        )
        assert torch.equal(torch.random.get_rng_state(), state)
        return parts

    return run


@pytest.mark.parametrize("family", ["vaultgemma", "medgemma", "t5gemma", "gemma3n"])
def test_correct_gradients_pass_without_side_effects(check, family):
    parts = check(family, lora_dropout=0.3)
    assert parts.learner.training
    assert all(parameter.grad is None for parameter in parts.learner.parameters())


class Mixing(nn.Module):
    """Normalization over all samples of a batch, as by BatchNorm in training."""

    def forward(self, hidden):
        return hidden / hidden.square().mean(dim=(0, 1)).sqrt()


def test_a_model_that_mixes_samples_is_found(check):
    def mix(learner):
        layer = learner.student.pretrained.get_decoder().layers[1]
        layer.register_forward_hook(lambda module, inputs, output: Mixing()(output))

    with pytest.raises(ConfigError, match="depend on the other samples of the batch .*remove it from model_args.lora"):
        check(change=mix)


def test_wrong_gradients_are_found(check, monkeypatch):
    recorded = Tape.add

    def wrong(self, layer, own, gradient):
        is_wrong = "layers.1.mlp.up_proj" in self.names[layer.get_parameter(own)]
        recorded(self, layer, own, gradient * 1.01 if is_wrong else gradient)

    monkeypatch.setattr(Tape, "add", wrong)
    with pytest.raises(ConfigError, match=r"layers.1.mlp.up_proj.lora_A.* do not add up to the gradient of the batch"):
        check()


def test_a_layer_that_is_hidden_from_the_tape_is_found(check, monkeypatch):
    monkeypatch.setattr(PerSampleLinear, "forward", nn.Linear.forward)
    with pytest.raises(ConfigError, match="do not add up to the gradient of the batch"):
        check()


def test_a_vision_model_is_checked(make_private_vision, monkeypatch):
    parts = make_private_vision(torch.float32)
    tape = Tape(parts.learner, images_in(parts.learner))
    pieces = [parts.pad(parts.encoded)], parts.pad(parts.encoded[-1:])
    check_gradients(parts.learner, tape, *pieces, Accelerator(cpu=True))
    monkeypatch.setattr(PerSampleLayerNorm, "forward", nn.LayerNorm.forward)
    with pytest.raises(ConfigError, match=r"measures.norm.weight do not add up to the gradient of the batch"):
        check_gradients(parts.learner, tape, *pieces, Accelerator(cpu=True))
