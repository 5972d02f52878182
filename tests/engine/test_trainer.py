"""Tests of `mllm.engine.trainer`: division of batches, comparison with a plain loop, and bit-equal resume."""

import inspect
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from mllm.engine.sharded_trainer import ShardedTrainer
from mllm.engine.trainer import MultimodalTrainer
from mllm.errors import DataError, TrainingError, advised
from mllm.objectives.text import NextToken
from mllm.structures import IGNORE
from mllm.supervision import unsupervised


def _plain_loop(trainer, steps):
    """Train with the loss of the model over full logits, one sample at a time, as a mean over tokens of an update."""
    learner = trainer.learner
    model, encoder = learner.student.pretrained, trainer.data_collator.pad.__self__
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0)
    learner.train()
    losses, sampler = [], trainer.train_sampler
    updates = [draws for epoch in range(3) for draws in (sampler.set_epoch(epoch), list(sampler))[1]]
    for step in range(steps):
        samples = [trainer.train_dataset[draw] for draw in updates[step]]
        tokens = sum(int((sample.targets["labels"][1:] != IGNORE).sum()) for sample in samples)
        loss = 0.0
        for sample in samples:
            batch = encoder.pad([sample])
            own = model(**batch.student, labels=batch.targets["labels"]).loss
            share = own * (batch.targets["labels"][:, 1:] != IGNORE).sum() / tokens
            share.backward()
            loss += share.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    return losses


def test_losses_and_weights_equal_a_plain_loop_over_the_models_own_loss(make_trainer, trained):
    # With the default epsilon, a gradient of rounding errors would become an update of full size.
    options = dict(max_steps=5, adam_epsilon=1e-6)
    ours, theirs = make_trainer(tokens_per_piece=120, **options), make_trainer(**options)
    ours.train()
    expected = _plain_loop(theirs, 5)
    losses = [row["loss"] for row in ours.state.log_history if "loss" in row]
    assert losses == pytest.approx(expected, rel=1e-5)
    actual = trained(ours)
    for name, value in trained(theirs).items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("cut", [dict(samples_per_piece=2), dict(samples_per_piece=1), dict(tokens_per_piece=90)])
def test_the_update_does_not_depend_on_the_division(make_trainer, trained, cut):
    whole, pieces = make_trainer(optim="sgd", max_steps=2), make_trainer(optim="sgd", max_steps=2, **cut)
    start = trained(whole)
    whole.train()
    pieces.train()
    actual = trained(pieces)
    for name, value in trained(whole).items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-6, msg=name)
        assert not torch.equal(start[name], value), f"{name} did not move"


def test_a_resumed_run_is_bit_equal_with_dropout_and_augmentation(make_trainer, trained, tmp_path):
    options = dict(dropout=0.2, max_steps=7, save_strategy="steps", save_steps=2)
    whole = make_trainer(**options, output_dir=str(tmp_path / "whole"))
    whole.train()
    resumed = make_trainer(**options, output_dir=str(tmp_path / "resumed"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    actual = trained(resumed)
    for name, value in trained(whole).items():
        assert torch.equal(actual[name], value), name
    rows = json.loads((tmp_path / "resumed" / "training_log.json").read_text())["rows"]
    expected = json.loads((tmp_path / "whole" / "training_log.json").read_text())["rows"]
    assert [(row["step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in expected]


def test_the_final_figures_of_a_resumed_run_cover_its_own_updates(make_trainer, tmp_path):
    options = dict(max_steps=6, save_strategy="steps", save_steps=4)
    whole = make_trainer(**options)
    result = whole.train()
    rows = [row for row in whole.state.log_history if "loss" in row]
    assert result.metrics["train_loss"] == pytest.approx(sum(row["loss"] for row in rows) / 6, rel=1e-5)
    resumed = make_trainer(**options)
    metrics = resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4")).metrics
    assert (metrics["train_updates"], metrics["train_from_step"], metrics["train_samples"]) == (2, 4, 8)
    assert metrics["train_loss"] == pytest.approx(sum(row["loss"] for row in rows[4:]) / 2, rel=1e-5)
    speed = metrics["train_samples_per_second"]
    assert speed == pytest.approx(4 * metrics["train_steps_per_second"])
    assert speed >= 8 / metrics["train_runtime"], "the speed is of this resume, without evaluations"


def _losses(trainer):
    return [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]


def test_a_resume_around_the_end_of_an_epoch_is_bit_equal_with_workers_and_evaluations(make_trainer, trained, tmp_path):
    options = dict(
        dropout=0.2,
        max_steps=5,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="epoch",
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
        dataloader_prefetch_factor=3,
    )
    whole = make_trainer(**options, output_dir=str(tmp_path / "whole"))
    whole.train()
    expected = trained(whole)
    for step in (2, 3, 4):
        resumed = make_trainer(**options, output_dir=str(tmp_path / f"resumed-{step}"))
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert _losses(resumed) == _losses(whole), step
        actual = trained(resumed)
        assert all(torch.equal(actual[name], value) for name, value in expected.items()), step


def test_the_seconds_of_the_log_are_without_evaluations_and_their_callbacks(make_trainer, monkeypatch):
    now = [10.0]
    monkeypatch.setattr("mllm.engine.meter.time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            now[0] += 100

    trainer = make_trainer()
    trainer.add_callback(Slow())
    trainer.meter.count(trainer.first_batch())
    now[0] += 3
    trainer.evaluate()
    assert trainer.meter.seconds == 3


def test_an_evaluation_does_not_change_the_random_state(make_trainer):
    trainer = make_trainer()
    before = torch.random.get_rng_state()
    trainer.evaluate()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_finished_run_that_is_resumed_makes_no_further_update(make_trainer, trained, tmp_path, strategy):
    options = dict(max_steps=2, save_strategy=strategy, save_steps=1, eval_strategy=strategy, eval_steps=1)
    whole = make_trainer(**options)
    whole.train()
    newest = tmp_path / "run" / "checkpoint-2"
    written = {path.name: path.stat().st_mtime_ns for path in newest.iterdir()}
    again = make_trainer(**options)
    again.train(resume_from_checkpoint=str(newest))
    assert again.state.global_step == 2
    actual = trained(again)
    assert all(torch.equal(actual[name], value) for name, value in trained(whole).items())
    assert {path.name: path.stat().st_mtime_ns for path in newest.iterdir()} == written
    evaluations = [row["step"] for row in again.state.log_history if "eval_loss" in row]
    assert len(evaluations) == len(set(evaluations))


def test_a_finished_run_continues_at_the_rate_of_the_longer_schedule(make_trainer, tmp_path):
    """The linear schedule of 1e-3 over 8 updates has 1e-3 * 6/8 before update 3; that of 2 updates ends at 0."""
    make_trainer(max_steps=2, save_strategy="steps", save_steps=2).train()
    longer = make_trainer(max_steps=8, output_dir=str(tmp_path / "longer"), save_strategy="steps", save_steps=3)
    longer.args.weight_decay = 0.125
    longer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    rates = {row["step"]: row["learning_rate"] for row in longer.state.log_history if "learning_rate" in row}
    assert [rates[step] for step in (3, 4, 8)] == pytest.approx([1e-3 * 6 / 8, 1e-3 * 5 / 8, 1e-3 * 1 / 8])
    assert max(group["weight_decay"] for group in longer.optimizer.param_groups) == 0.125
    # Changed intervals and a changed learning rate in the config are applied.
    other = make_trainer(max_steps=8, output_dir=str(tmp_path / "other"), learning_rate=4e-3)
    other.train(resume_from_checkpoint=str(tmp_path / "longer" / "checkpoint-3"))
    rates = {row["step"]: row["learning_rate"] for row in other.state.log_history if "learning_rate" in row}
    assert rates[4] == pytest.approx(4e-3 * 5 / 8)


def test_the_best_checkpoint_survives_a_limit_of_one_and_is_loaded_at_the_end(make_trainer, trained, tmp_path):
    trainer = make_trainer(
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # so that the best is not the last
        limit=1,
    )
    trainer.train()
    evaluated = {row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
    best = max(evaluated, key=evaluated.get)
    assert best != 3
    left = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert left == [f"checkpoint-{best}", "checkpoint-3"]
    saved = load_file(tmp_path / "run" / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in trained(trainer).items())


SEAMS = {
    "get_train_dataloader": ["self"],
    "get_eval_dataloader": ["self", "eval_dataset"],
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "evaluate": ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    "floating_point_ops": ["self", "inputs"],
    "_save_checkpoint": ["self", "model", "trial"],
    "log": ["self", "logs", "start_time"],
}
"""Overridden methods of transformers.Trainer, with the arguments that it passes: equal from 5.18 to 5.23."""
ENGINE_SEAMS = {
    "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "create_scheduler": ["self", "num_training_steps", "optimizer"],
    "_prepare_for_training": ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"],
    "_save_optimizer_and_scheduler": ["self", "output_dir"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
}
"""Those that `ShardedTrainer` overrides, in 5.24."""


def test_overridden_methods_exist_in_trainer_with_the_expected_signatures():
    for ours, seams in ((MultimodalTrainer, SEAMS), (ShardedTrainer, ENGINE_SEAMS)):
        names = {name for name, value in vars(ours).items() if callable(value) and not name.startswith("__")}
        assert names & set(dir(Trainer)) == set(seams)
        for name, expected in seams.items():
            for kind in (Trainer, ours):
                assert list(inspect.signature(vars(kind)[name]).parameters) == expected, (kind, name)


def test_trainer_requests_one_batch_per_update():
    loop = inspect.getsource(Trainer._run_epoch)
    assert "self.get_batch_samples(epoch_iterator, num_batches, self.args.device)" in loop
    assert "self.training_step(model, inputs, num_items_in_batch)" in loop
    assert "self.control.should_epoch_stop or self.control.should_training_stop" in loop


def test_every_log_row_has_all_keys(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=3)
    trainer.train()
    rows = json.loads((tmp_path / "run" / "training_log.json").read_text())["rows"]
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["next_token"] == pytest.approx(row["loss"], rel=1e-6)
        assert 0 <= row["padding_share"] < 1
        assert row["tokens_per_second"] > 0
        assert row["peak_memory_gb"] > 0.1
        assert "learning_rate" in row
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_smaller_batch_of_an_epoch_is_an_update_too(make_trainer):
    trainer = make_trainer(batch=5, num_train_epochs=2)
    trainer.train()
    assert trainer.state.global_step == 2 * math.ceil(12 / 5)


def test_the_validation_loss_is_the_exact_mean_over_tokens(make_trainer):
    trainer = make_trainer()
    metrics = trainer.evaluate()
    learner, encoder = trainer.learner.eval(), trainer.data_collator.pad.__self__
    total = count = 0
    with torch.no_grad():
        for index in range(5):
            batch = encoder.pad([trainer.eval_dataset[index]])
            tokens = int(NextToken().count(batch.targets).sum())
            total += tokens * learner.student.pretrained(**batch.student, labels=batch.targets["labels"]).loss.item()
            count += tokens
    assert metrics["eval_loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_non_finite_loss_stops_the_run_and_names_step_and_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=6, save_strategy="steps", save_steps=2)
    poisoned = next(parameter for name, parameter in trainer.learner.named_parameters() if "lora_B" in name)

    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                poisoned.data.fill_(float("nan"))

    trainer.add_callback(Poison())
    with pytest.raises(TrainingError) as error:
        trainer.train()
    assert str(error.value) == (
        f"the loss is nan at step 4; the last good checkpoint is {tmp_path / 'run' / 'checkpoint-2'}; lower "
        "learning_rate (now 0.001) or max_grad_norm (now 1), or train in bf16 or fp32"
    )


def test_a_non_finite_gradient_does_not_reach_the_weights(make_trainer, trained):
    trainer = make_trainer(max_steps=2)
    before = trained(trainer)
    parameter = next(parameter for name, parameter in trainer.learner.named_parameters() if "lora_B" in name)
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match="the gradient is nan at step 1; no checkpoint has been written yet"):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in trained(trainer).items())


class Exhausting(NextToken):
    """An objective that raises an out-of-memory error."""

    def total(self, context):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.60 GiB")


def test_an_out_of_memory_error_lists_settings_to_lower(make_trainer):
    trainer = make_trainer(max_steps=2)
    trainer.learner.objectives["next_token"] = Exhausting()
    with pytest.raises(TrainingError) as error:
        trainer.train()
    assert str(error.value) == "out of memory at step 1. Lower, in this order: max_length (now 256)"


def _broken_rows(rows_class, broken):
    class Broken(rows_class):
        def sample(self, index, epoch=0):
            if index in broken:
                raise DataError(f"rows.jsonl, line {index + 1}: image x.png does not exist")
            return super().sample(index, epoch)

    return Broken()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_invalid_row_stops_the_run_with_its_message(make_trainer, workers):
    rows = type(make_trainer().train_dataset.samples)
    trainer = make_trainer(rows=_broken_rows(rows, {3}), max_steps=3, dataloader_num_workers=workers)
    with pytest.raises(DataError) as error:
        trainer.train()
    assert str(error.value) == advised("rows.jsonl, line 4: image x.png does not exist")


def test_skipped_rows_are_counted_once_and_listed(make_trainer, tmp_path):
    rows = type(make_trainer().train_dataset.samples)
    trainer = make_trainer(rows=_broken_rows(rows, {3, 5}), skip=True, num_train_epochs=2)
    trainer.train()
    listed = (tmp_path / "run" / "skipped_rows.txt").read_text().splitlines()
    assert listed[0] == "# train"
    assert sorted(listed[1:]) == [f"rows.jsonl, line {line}: image x.png does not exist" for line in (4, 6)]
    assert trainer.state.global_step == 6


def test_heads_and_added_tokens_train_and_resume_bit_equal(
    make_trainer, make_model_with_heads, location_rows, trained, tmp_path
):
    options = dict(rows=location_rows(), max_steps=4, save_strategy="steps", save_steps=2, samples_per_piece=3)
    whole = make_trainer(parts=make_model_with_heads(), **options, output_dir=str(tmp_path / "whole"))
    before = trained(whole)
    whole.train()
    unmoved = {name for name, value in trained(whole).items() if torch.equal(before[name], value)}
    assert not unmoved, f"heads, rows or adapter did not move: {unmoved}"
    for row in whole.state.log_history[:4]:
        assert row["loss"] == pytest.approx(row["next_token"] + row["box"] + row["mask"], rel=1e-4)
    resumed = make_trainer(parts=make_model_with_heads(), **options, output_dir=str(tmp_path / "resumed"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    actual = trained(resumed)
    for name, value in trained(whole).items():
        assert torch.equal(actual[name], value), name


def test_a_process_without_a_row_runs_a_piece_without_supervision(make_trainer, make_model_with_heads, location_rows):
    trainer = make_trainer(parts=make_model_with_heads(), rows=location_rows())
    batch, idle = trainer.first_batch().pieces[-1], trainer._idle_piece
    assert batch.targets["boxes_known"].any() and batch.targets["masks_known"].any()
    assert not any(int(count) for count in trainer.learner.counts(idle.targets).values())
    loss = trainer.learner(idle.student, idle.targets)["loss"]
    loss.backward()
    assert loss.item() == 0
    for name, parameter in trainer.learner.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and not parameter.grad.any(), name


class Unsupervised:
    """Callback that removes all labels in some steps, as if `max_length` cut every answer."""

    def __init__(self, trainer, steps):
        self.trainer, self.steps, self.collate = trainer, steps, trainer.data_collator
        self.batches = 0
        trainer.data_collator = self

    def __call__(self, items):
        batch = self.collate(items)
        self.batches += 1
        if self.batches not in self.steps:
            return batch
        return replace(batch, pieces=[replace(piece, targets=unsupervised(piece.targets)) for piece in batch.pieces])


def test_updates_without_a_supervised_item_are_in_no_mean_of_the_loss(make_trainer):
    whole = make_trainer(max_steps=6, logging_steps=2, learning_rate=0.0, weight_decay=0.0)
    Unsupervised(whole, steps=(2, 3, 4))
    whole.train()
    single = make_trainer(max_steps=6, logging_steps=1, learning_rate=0.0, weight_decay=0.0)
    single.train()
    losses = [row["loss"] for row in single.state.log_history if "loss" in row]
    rows = {row["step"]: row["loss"] for row in whole.state.log_history if "loss" in row}
    # Steps 3 and 4 have no loss, so they have no entry.
    assert rows == {2: pytest.approx(losses[0]), 6: pytest.approx((losses[4] + losses[5]) / 2)}
    final = whole.state.log_history[-1]
    assert final["train_updates"] == 3
    assert final["train_loss"] == pytest.approx((losses[0] + losses[4] + losses[5]) / 3)
