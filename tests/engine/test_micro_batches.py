"""Tests of micro-batches whose size is halved when memory runs out."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from mllm.engine.micro_batches import MicroBatches
from mllm.errors import DataError, TrainingError
from mllm.structures import Encoded


class Card:
    """Stand-in for the memory of a GPU: a forward pass of more than `room` padded tokens has no memory.

    The failed pass draws a random number first, as dropout does.
    """

    def __init__(self, trainer, room):
        self.room, self.sizes, self.failed = room, [], 0
        trainer.learner.student.register_forward_pre_hook(self.allocate, with_kwargs=True)

    def allocate(self, module, args, kwargs):
        tokens = kwargs["input_ids"].numel()
        if module.training and tokens > self.room:
            torch.rand(1)
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(tokens)


@pytest.fixture
def make_auto(make_trainer, tmp_path):
    """A function that builds a trainer with a card of `room` tokens and micro-batches that fit."""

    def make(room, **options):
        trainer = make_trainer(samples_per_piece=4, **options)
        (tmp_path / "run").mkdir(exist_ok=True)
        trainer.micro_batches = MicroBatches(trainer.data_collator, tmp_path / "run" / "micro_batches.json")
        return trainer, Card(trainer, room)

    return make


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def longest(trainer):
    """Number of tokens of the longest sample."""
    items = [trainer.train_dataset[index] for index in range(len(trainer.train_dataset))]
    return max(len(item) for item in items if isinstance(item, Encoded))


def test_an_update_that_does_not_fit_is_computed_again_in_smaller_pieces_with_equal_loss_and_weights(
    make_auto, make_trainer, trained, tmp_path, caplog
):
    fixed = make_trainer(samples_per_piece=4, max_steps=4, per_device_train_batch_size=4)
    fixed.train()
    trainer, card = make_auto(2 * longest(fixed), max_steps=4)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert card.failed and max(card.sizes) <= card.room
    assert losses(trainer) == pytest.approx(losses(fixed), rel=1e-6)
    for name, value in trained(fixed).items():
        torch.testing.assert_close(trained(trainer)[name], value, rtol=2e-5, atol=1e-7)
    record = json.loads((tmp_path / "run" / "micro_batches.json").read_text())
    assert record[0]["update"] == 0 and record[-1]["tokens_per_micro_batch"] <= card.room
    assert f"out of memory at step 1 in micro-batches of up to {sum_of_first(trainer)} tokens" in caplog.text
    # Terms of objectives of failed passes are not counted.
    terms = [row["next_token"] for row in trainer.state.log_history if "next_token" in row]
    assert terms == pytest.approx(losses(fixed), rel=1e-6)


def sum_of_first(trainer):
    """Number of padded tokens of the first logical batch in one piece."""
    trainer.train_sampler.set_epoch(0)
    draws = next(iter(trainer.train_sampler))
    trainer.data_collator.tokens_per_piece = None
    return trainer.data_collator([trainer.train_dataset[draw] for draw in draws]).padded_tokens


def test_dropout_of_a_repeated_update_is_that_of_an_update_that_fits(make_auto, make_trainer, trained, tmp_path):
    probe = make_trainer()
    # The first update fails twice and then fits; a run whose record has the size draws the same dropout.
    first, card = make_auto(longest(probe), max_steps=2, dropout=0.3)
    first.train()
    assert card.failed
    expected = trained(first)
    second, card = make_auto(longest(probe), max_steps=2, dropout=0.3)
    second.train()
    assert not card.failed
    assert all(torch.equal(value, expected[name]) for name, value in trained(second).items())


def test_the_check_before_the_first_update_finds_a_size_that_fits(make_auto, make_trainer):
    trainer, card = make_auto(2 * longest(make_trainer()))
    batch = trainer.preflight()
    assert card.failed and max(piece.student["input_ids"].numel() for piece in batch.pieces) <= card.room
    assert all(parameter.grad is None for parameter in trainer.learner.parameters())


def test_a_resumed_run_divides_each_update_as_before(make_auto, make_trainer, trained, tmp_path):
    room = 2 * longest(make_trainer())
    options = dict(max_steps=4, save_strategy="steps", save_steps=1)
    whole, card = make_auto(room, **options)
    # Memory becomes scarce in the third update.
    whole.add_callback(ScarceFrom(card, update=2, room=longest(whole)))
    card.room = 10**9
    whole.train()
    assert {row["update"] for row in json.loads((tmp_path / "run" / "micro_batches.json").read_text())} == {2}
    resumed, card = make_auto(10**9, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert all(torch.equal(value, trained(whole)[name]) for name, value in trained(resumed).items())
    assert max(card.sizes[:2]) > longest(whole) >= max(card.sizes[2:])


class ScarceFrom:
    """Callback that lowers the memory of a card from an update on."""

    def __init__(self, card, update, room):
        self.card, self.update, self.room = card, update, room

    def __getattr__(self, name):
        return self.lower

    def lower(self, args, state, control, **options):
        if state.global_step >= self.update:
            self.card.room = self.room


def test_a_sample_that_does_not_fit_alone_ends_with_the_advice(make_auto):
    trainer, _ = make_auto(3, max_steps=1)
    with pytest.raises(TrainingError, match=r"out of memory at step 1\. Lower, in this order: max_length"):
        trainer.train()


def test_other_errors_are_raised_at_once(make_auto):
    trainer, card = make_auto(10**9, max_steps=1)
    card.room = None
    with pytest.raises(TypeError):
        trainer.train()
    assert not trainer.micro_batches.limits


def test_validation_is_divided_and_equal(make_auto, make_trainer):
    fixed = make_trainer().evaluate()
    trainer, _ = make_auto(10**9)
    trainer.micro_batches.limits = [(0, 60)]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(fixed["eval_loss"], rel=1e-6)


def test_a_damaged_record_is_refused(make_trainer, tmp_path):
    (tmp_path / "micro_batches.json").write_text('[{"update": 1}]')
    with pytest.raises(DataError, match=r"micro_batches\.json is damaged: remove it"):
        MicroBatches(make_trainer().data_collator, tmp_path / "micro_batches.json")
