"""Tests of the checks before the first update."""

import pytest
import torch

from mllm.engine import preflight as preflight_module
from mllm.engine.preflight import preflight
from mllm.errors import ConfigError
from mllm.objectives.text import NextToken


def _run(trainer):
    preflight(trainer.learner, trainer.first_batch(), trainer.accelerator)


def test_a_valid_run_passes_without_side_effects(make_trainer, trained):
    trainer = make_trainer(dropout=0.2)
    before, state = trained(trainer), torch.random.get_rng_state()
    _run(trainer)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in trainer.learner.parameters())
    assert all(torch.equal(before[name], value) for name, value in trained(trainer).items())


def test_one_gradient_is_held_at_a_time(make_trainer):
    """With FSDP2 and ZeRO-3, processes have no memory for the gradients of all weights that train."""
    trainer, held = make_trainer(), []
    parameters = [parameter for parameter in trainer.learner.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(
            lambda _: held.append(sum(parameter.grad is not None for parameter in parameters))
        )
    _run(trainer)
    assert held == [1] * len(parameters)


def test_a_trainable_tensor_without_gradient_is_named(make_trainer):
    trainer = make_trainer()
    trainer.learner.student.idle = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ConfigError, match="1 trainable tensors receive no gradient.*student.idle"):
        _run(trainer)


def test_an_error_in_the_code_of_a_model_is_one_sentence(make_trainer):
    trainer = make_trainer()
    batch = trainer.first_batch()
    batch.pieces[0].student["input_ids"][0, 0] = 10**6  # no row of the embedding
    with pytest.raises(ConfigError, match=r"^\w+ of transformers [\d.]+ fails on the first batch \(IndexError: "):
        preflight(trainer.learner, batch, trainer.accelerator)


class Texts:
    """Rows of another class with texts in the first batches and images only in the last batch."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def sample(self, index, epoch=0):
        # Every third of twelve rows is a text; the first two batches contain texts only.
        return self.rows.sample(2 if index < 8 else 0, epoch)


def test_a_vision_tower_may_be_reached_by_a_later_batch(make_trainer, rows):
    trainer = make_trainer(rows=Texts(rows(12)))
    trainer.train_sampler.shuffle = False
    with pytest.raises(ConfigError, match="12 trainable tensors receive no gradient.*vision_tower"):
        _run(trainer)
    preflight(trainer.learner, trainer.first_batch(), trainer.accelerator, further=trainer.first_batches())
    assert all(parameter.grad is None for parameter in trainer.learner.parameters())


def test_nothing_trainable_is_refused(make_trainer):
    trainer = make_trainer()
    trainer.learner.requires_grad_(False)
    with pytest.raises(ConfigError, match="the model has no trainable tensor"):
        _run(trainer)


class Idle(NextToken):
    """An objective without a gradient."""

    def total(self, context):
        return torch.ones(context.student.hidden_BLD.shape[0], requires_grad=True)


def test_an_objective_without_gradient_is_named(make_trainer):
    trainer = make_trainer()
    trainer.learner.objectives["idle"] = Idle()
    with pytest.raises(ConfigError, match=r"the objectives \['idle'\] have no gradient for any trainable tensor"):
        _run(trainer)


def test_a_model_with_other_logits_is_refused(make_trainer):
    trainer = make_trainer()
    head = trainer.learner.student.pretrained.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: output * 4)
    with pytest.raises(ConfigError, match="changes its logits in a way that this version does not support"):
        _run(trainer)


@pytest.mark.parametrize("part", [torch.float32, torch.bfloat16])
def test_states_are_compared_with_the_precision_of_the_least_precise_part(make_trainer, monkeypatch, part):
    """The vocabulary is in fp32 in both cases. Rounding is a change of 0.4 % in every second pass."""
    monkeypatch.setattr(preflight_module, "TOLERANCE", preflight_module.HALF_TOLERANCE)
    trainer, passes = make_trainer(), []

    def rounded(module, inputs, output):
        passes.append(module)
        return output * (1 + 2.0**-8 * (len(passes) % 2))

    pretrained = trainer.learner.student.pretrained
    pretrained.part = torch.nn.Parameter(torch.zeros(1, dtype=part), requires_grad=False)
    pretrained.model.language_model.norm.register_forward_hook(rounded)
    if part == torch.float32:
        with pytest.raises(ConfigError, match="attends to later tokens"):
            _run(trainer)
    else:
        _run(trainer)


def test_heads_and_added_rows_pass_and_their_losses_are_those_of_the_model(
    make_trainer, make_model_with_heads, location_rows, trained
):
    trainer = make_trainer(parts=make_model_with_heads(), rows=location_rows())
    with torch.no_grad():
        trainer.learner.student.rows.input.normal_()  # far from the rows of the table
    before = trained(trainer)
    assert {name.split(".")[1] for name in before} >= {"heads", "rows", "backbone"}
    _run(trainer)
    assert all(torch.equal(before[name], value) for name, value in trained(trainer).items())
    rows = trainer.learner.student.rows
    trainer.learner.student.rows = None  # the loss leaves them out, the logits of the model do not
    with pytest.raises(ConfigError, match="changes its logits in a way that this version does not support"):
        _run(trainer)
    trainer.learner.student.rows = rows


def test_a_head_without_an_objective_is_named(make_trainer, make_model_with_heads, location_rows):
    bundle, objectives = make_model_with_heads()
    del objectives["mask"]
    trainer = make_trainer(parts=(bundle, objectives), rows=location_rows())
    with pytest.raises(ConfigError, match=r"receive no gradient.*student.heads.mask.* an objective that"):
        _run(trainer)


def test_an_objective_without_supervised_items_is_logged(
    make_trainer, make_model_with_heads, rows, location_rows, caplog
):
    trainer = make_trainer(parts=make_model_with_heads(), rows=rows(12))
    preflight(trainer.learner, trainer.first_batch(), trainer.accelerator, further=trainer.first_batches())
    assert "the objectives ['box', 'mask'] have no supervised item in the first batches" in caplog.text
    caplog.clear()
    trainer = make_trainer(parts=make_model_with_heads(), rows=location_rows())
    preflight(trainer.learner, trainer.first_batch(), trainer.accelerator, further=trainer.first_batches())
    assert "no supervised item" not in caplog.text
