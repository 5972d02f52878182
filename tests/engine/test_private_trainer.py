"""Tests of private updates against a reference DP-SGD: noise, ledger, end of training and resume."""

import json
import math

import pytest
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.dataset.loading.collator import EncodedDataset, LogicalCollator
from mllm.dataset.loading.poisson import PoissonSampler
from mllm.dataset.loading.sharing import RowCollator
from mllm.engine.callbacks import Checkpoints, Epochs
from mllm.engine.learner import Learner
from mllm.engine.meter import Meter
from mllm.engine.privacy.accounting import epsilon_spent
from mllm.engine.privacy.ledger import Ledger
from mllm.engine.privacy.mechanism import Mechanism
from mllm.engine.private_trainer import KeepLedger, PrivateTrainer, SaveBelow
from mllm.engine.run_log import RunLog
from mllm.errors import ConfigError
from mllm.models.builder.builder import load_pretrained
from mllm.models.encoding.packing import packing
from mllm.models.encoding.synthetic import synthetic_samples
from mllm.objectives.text import NextToken
from mllm.structures import IGNORE, Sample, Turn
from mllm.tiny.checkpoints import write_tiny

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
SECRET = bytes(range(32))
UNITS, RATE = 12, 0.4
SMALL = dict(num_hidden_layers=1, layer_types=["full_attention"], hidden_size=64, intermediate_size=64)
TEMPLATE = "{% for turn in messages %}{{ turn['role'] ~ ': ' ~ turn['content'] ~ eos_token }}{% endfor %}"
PATIENTS = [[0, 1, 2, 3, 4], [5], [6, 7], [8, 9, 10], [11]]


class Rows:
    """Short texts of different lengths."""

    def __len__(self):
        return UNITS

    def sample(self, index, epoch=0):
        words = ["chest", "normal", "lesion", "left", "opacity"]
        answer = " ".join(words[(index + place) % 5] for place in range(1 + index % 6))
        return Sample([Turn("user", words[index % 5]), Turn("assistant", answer)], source=f"row {index}")


@pytest.fixture
def make_trainer(tmp_path, tmp_path_factory):
    """A function that builds a private trainer; options are those of the mechanism and of TrainingArguments."""
    folder = tmp_path_factory.getbasetemp() / "private-tiny"

    def make(physical=8, units=None, rate=RATE, dtype=torch.float32, mechanism=None, packed=False, **options):
        torch.manual_seed(0)
        path = str(write_tiny("vaultgemma", folder, text=SMALL))
        args = ModelArgs("causal-lm", path, lora_r=2, lora_target=r".*\.[qv]_proj", chat_template=TEMPLATE)
        bundle = load_pretrained(args, CPU)
        with torch.no_grad():
            for name, parameter in bundle.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        bundle.model.to(dtype)
        collate = LogicalCollator(bundle.encoder.pad, samples_per_piece=physical)
        if packed:
            bundle.model.share_tokens(image_blocks=False)
            collate = RowCollator(packing(bundle.encoder.pad), samples_per_piece=physical, max_samples=physical)
        units = units or [[index] for index in range(UNITS)]
        sampler, meter = PoissonSampler(units, rate, secret=SECRET), Meter()
        chosen = dict(clip_norm=0.5, delta=1e-3, noise_multiplier=0.0, test_noise_seed=None) | (mechanism or {})
        defaults = dict(output_dir=str(tmp_path / "run"), use_cpu=True, report_to=[], save_strategy="no", seed=0)
        defaults |= dict(learning_rate=0.5, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0)
        defaults |= dict(disable_tqdm=True, label_names=[], logging_steps=1, logging_nan_inf_filter=False)
        defaults |= dict(remove_unused_columns=False, max_steps=2)
        return PrivateTrainer(
            Learner(bundle.model, {"next_token": NextToken()}, reduction="samples"),
            TrainingArguments(**{**defaults, **options}),
            mechanism=Mechanism(units=len(units), sample_rate=rate, **chosen),
            synthetic=[bundle.encoder.encode(sample) for sample in synthetic_samples(3, 20, reads_images=False)],
            train_dataset=EncodedDataset(Rows(), bundle.encoder.encode),
            train_sampler=sampler,
            collate=collate,
            eval_dataset=EncodedDataset(Rows(), bundle.encoder.encode),
            eval_sampler=PoissonSampler([[index] for index in range(UNITS)], 1.0, secret=SECRET),
            meter=meter,
            callbacks=[KeepLedger(), Checkpoints(None), RunLog({}, meter), Epochs(sampler)],
        )

    return make


def trained(trainer):
    return {name: value.detach().clone() for name, value in trainer.learner.state_dict().items()}


def by_hand(trainer, updates, per_layer=False):
    """Train by DP-SGD without noise: one sample at a time, from the logits of the model, with plain SGD."""
    learner = trainer.learner
    named = {name: parameter for name, parameter in learner.named_parameters() if parameter.requires_grad}
    clip, rate, units = trainer.mechanism.clip_norm, trainer.mechanism.sample_rate, trainer.train_sampler.units
    learner.train()
    for update in range(updates):
        total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        for unit in trainer.train_sampler.draw(update):
            mine = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
            for record in units[unit]:
                (batch,) = trainer.data_collator([trainer.train_dataset[record]]).pieces
                inputs = {name: batch.student[name] for name in ("input_ids", "attention_mask")}
                logits = learner.student.pretrained(**inputs).logits[0, :-1]
                loss = nn.functional.cross_entropy(logits, batch.targets["labels"][0, 1:], ignore_index=IGNORE)
                for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
                    mine[name] += gradient
            norms = {name: float(gradient.double().norm()) for name, gradient in mine.items()}
            whole = sum(norm**2 for norm in norms.values()) ** 0.5
            for name, gradient in mine.items():
                bound, norm = (clip / len(named) ** 0.5, norms[name]) if per_layer else (clip, whole)
                total[name] += gradient * min(1.0, bound / norm)
        with torch.no_grad():
            for name, parameter in named.items():
                parameter -= 0.5 * total[name] / (rate * len(units))


@pytest.mark.parametrize(("clipping", "packed"), [("flat", False), ("flat", True), ("per_layer", False)])
@pytest.mark.parametrize("units", [None, PATIENTS], ids=["samples", "patients"])
def test_updates_without_noise_equal_a_reference_dp_sgd(make_trainer, clipping, packed, units):
    options = dict(units=units, dtype=torch.float64, mechanism=dict(clipping=clipping))
    ours, theirs = make_trainer(physical=2, packed=packed, **options), make_trainer(**options)
    start = trained(ours)
    ours.train()
    by_hand(theirs, 2, per_layer=clipping == "per_layer")
    actual = trained(ours)
    for name, value in trained(theirs).items():
        assert (actual[name] - value).norm() < 1e-5 * (value - start[name]).norm(), name
        assert not torch.equal(start[name], value)


@pytest.mark.parametrize("units", [None, PATIENTS], ids=["samples", "patients"])
def test_the_physical_batch_changes_no_update(make_trainer, units):
    options = dict(units=units, rate=0.6, dtype=torch.float64)
    whole = make_trainer(physical=8, **options)
    whole.train()
    for physical in (1, 2):
        cut = make_trainer(physical=physical, **options)
        cut.train()
        actual = trained(cut)
        for name, value in trained(whole).items():
            torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-7, msg=name)


def test_one_sample_moves_an_update_by_no_more_than_the_clip_norm(make_trainer):
    """The bound that the guarantee requires: clip norm divided by expected units, times the learning rate."""
    ends = []
    for left_out in (None, 3):
        trainer = make_trainer(max_steps=1, rate=0.9, dtype=torch.float64)
        drawn = trainer.train_sampler.draw
        assert 3 in drawn(0)
        trainer.train_sampler.draw = lambda update, drawn=drawn, out=left_out: [u for u in drawn(update) if u != out]
        trainer.train()
        ends.append(torch.cat([value.flatten() for value in trained(trainer).values()]))
    moved = float((ends[0] - ends[1]).norm()) / 0.5 * 0.9 * UNITS
    assert 0 < moved <= 0.5 * (1 + 1e-9)


NEVER = dict(rate=1e-9, mechanism=dict(noise_multiplier=0.8))


def test_an_empty_draw_takes_a_noise_step_of_the_right_size(make_trainer):
    trainer = make_trainer(**NEVER, max_steps=40)
    gradients = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))

    trainer.add_callback(Watch())
    start = trained(trainer)
    trainer.args.learning_rate = 1e-12
    trainer.train()
    assert trainer.ledger.entries == ((0.8, 1e-9, 40),)
    drawn = torch.stack(gradients) * trainer.mechanism.expected_units
    assert drawn.std().item() == pytest.approx(0.8 * 0.5, rel=0.03)
    assert all(not torch.equal(start[name], value) for name, value in trained(trainer).items())
    assert not [row for row in trainer.state.log_history if "loss" in row], "there is no loss without a sample"


def test_two_runs_with_the_same_seed_differ_and_with_a_test_seed_do_not(make_trainer):
    def run(**mechanism):
        trainer = make_trainer(mechanism=dict(noise_multiplier=0.8, **mechanism))
        trainer.train()
        return trained(trainer)

    first, second = run(), run()
    assert all(not torch.equal(first[name], second[name]) for name in first)
    known, again = run(test_noise_seed=1), run(test_noise_seed=1)
    assert all(torch.equal(known[name], again[name]) for name in known)


def test_noise_is_scaled_by_the_clip_norm_and_the_expected_units(make_trainer):
    def moved(seed, **mechanism):
        trainer = make_trainer(max_steps=1, rate=0.5, mechanism=dict(test_noise_seed=seed) | mechanism)
        start = trained(trainer)
        trainer.train()
        return torch.cat([(value - start[name]).flatten() for name, value in trained(trainer).items()])

    quiet = moved(5)
    loud = moved(5, noise_multiplier=2.0)
    assert (loud - quiet).std().item() == pytest.approx(0.5 * 2.0 * 0.5 / (0.5 * UNITS), rel=0.05)


SAVED = dict(save_strategy="steps", save_steps=2, max_steps=6)


def test_a_resumed_run_has_the_same_ledger_and_with_a_test_seed_the_same_weights(make_trainer, tmp_path):
    options = dict(mechanism=dict(noise_multiplier=0.8, test_noise_seed=3), **SAVED)
    whole = make_trainer(**options, output_dir=str(tmp_path / "whole"))
    whole.train()
    resumed = make_trainer(**options, output_dir=str(tmp_path / "resumed"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed.ledger == whole.ledger == Ledger([(0.8, RATE, 6)])
    actual = trained(resumed)
    assert all(torch.equal(actual[name], value) for name, value in trained(whole).items())
    saved = [json.loads((tmp_path / run / "checkpoint-6" / "ledger.json").read_text()) for run in ("whole", "resumed")]
    assert saved[0] == saved[1]
    listed = json.loads((tmp_path / "whole" / "checkpoint-4" / "complete.json").read_text())["files"]
    assert "ledger.json" in listed


def test_the_noise_follows_from_the_target_and_a_resumed_run_keeps_it(make_trainer, tmp_path):
    target = dict(noise_multiplier=None, target_epsilon=6.0, accountant="rdp")
    whole = make_trainer(mechanism=target, **SAVED)
    whole.train()
    (entry,) = whole.ledger.entries
    assert entry.steps == 6
    spent = epsilon_spent(whole.ledger.entries, 1e-3, "rdp")
    assert 5.9 < spent <= 6.0
    longer = make_trainer(mechanism=target, **SAVED | dict(max_steps=9), output_dir=str(tmp_path / "longer"))
    longer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert longer.mechanism.noise_multiplier == entry.noise_multiplier
    assert longer.state.global_step == 6, "the target allows no more"
    assert longer.ledger == whole.ledger
    assert (tmp_path / "longer" / "checkpoint-6" / "complete.json").is_file()


def test_training_ends_before_the_target_is_exceeded(make_trainer, caplog):
    few = epsilon_spent([(1.0, RATE, 3)], 1e-3, "rdp")
    trainer = make_trainer(
        max_steps=8, mechanism=dict(noise_multiplier=1.0, target_epsilon=few * 1.0001, accountant="rdp")
    )
    with caplog.at_level("WARNING", logger="mllm"):
        trainer.train()
    assert trainer.state.global_step == trainer.ledger.steps == 3
    assert "training ends after 3 updates, because another one would exceed epsilon" in caplog.text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(rate=0.5), "the sample rate is 0.5, but 0.4 in"),
        (dict(units=[[index] for index in range(11)]), "units in the training data is 11, but 12 in"),
        (dict(mechanism=dict(noise_multiplier=0.8, data="other rows")), "data_args.train differs from that in "),
        (dict(mechanism=dict(noise_multiplier=0.8, test_noise_seed=1)), "privacy_args.test_noise_seed is 1, but None"),
    ],
)
def test_a_resume_with_other_data_or_at_another_rate_is_refused(make_trainer, tmp_path, change, sentence):
    make_trainer(mechanism=dict(noise_multiplier=0.8), **SAVED).train()
    changed = make_trainer(
        **{**SAVED, "mechanism": dict(noise_multiplier=0.8), "output_dir": str(tmp_path / "x"), **change}
    )
    with pytest.raises(ConfigError, match=sentence):
        changed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


def test_a_run_without_privacy_is_not_continued_with_it(make_trainer, tmp_path):
    make_trainer(**SAVED).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    (checkpoint / "ledger.json").unlink()
    with pytest.raises(ConfigError, match="was trained without privacy, so its updates are not in a ledger"):
        make_trainer(**SAVED, output_dir=str(tmp_path / "x")).train(resume_from_checkpoint=str(checkpoint))


def test_checks_before_the_first_update_read_artificial_samples(make_trainer):
    trainer = make_trainer(physical=2)

    def touched(draw):
        raise AssertionError("a private row was read")

    trainer.train_dataset = type("Untouchable", (), {"__getitem__": lambda self, draw: touched(draw)})()
    batch = trainer.preflight()
    assert batch.samples == 3
    assert all(parameter.grad is None for parameter in trainer.tape.parameters)


def test_the_loss_in_the_log_is_the_mean_over_the_samples_of_the_draw(make_trainer):
    trainer = make_trainer(physical=2, max_steps=2)
    drawn = trainer.train_sampler.draw
    trainer.train_sampler.draw = lambda update: drawn(update) if update == 1 else []
    learner, pad = trainer.learner.train(), trainer.data_collator.pad
    losses = []
    for record in drawn(1):
        batch = pad([trainer.train_dataset[record]])
        losses.append(learner(batch.student, batch.targets)["loss"].item())
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "loss" in row]
    assert row["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert row["next_token"] == pytest.approx(row["loss"], rel=1e-6)


def test_a_checkpoint_is_saved_when_the_validation_loss_first_falls_below_a_threshold():
    callback, saved_steps = SaveBelow([2.0, 1.0]), []
    state, history = TrainerState(), [2.5, 1.8, 1.9, 0.9, 1.2, 0.8]
    for step, loss in enumerate(history, start=1):
        control = TrainerControl()
        state.global_step = step
        state.log_history.append({"eval_loss": loss, "step": step})
        callback.on_evaluate(None, state, control, metrics={"eval_loss": loss})
        saved_steps += [step] * control.should_save
    assert saved_steps == [2, 4]


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 2, [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
        ("constant_with_warmup", 1, [1 / 2, 1, 1, 1, 1, 1]),
        ("constant_with_warmup", 9, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        ("cosine", 0, [math.cos(math.pi * step / 12) ** 2 for step in range(6)]),
    ],
)
def test_every_update_of_a_warmup_has_a_learning_rate(make_trainer, tmp_path, schedule, warmup, expected):
    options = dict(lr_scheduler_type=schedule, warmup_steps=warmup, learning_rate=0.5, max_steps=6)
    trainer = make_trainer(**options, save_strategy="steps", save_steps=1)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([0.5 * factor for factor in expected])
    resumed = make_trainer(**options)
    resumed.train(str(tmp_path / "run" / "checkpoint-1"))
    rates = [entry["learning_rate"] for entry in resumed.state.log_history if "learning_rate" in entry]
    assert rates[-5:] == pytest.approx([0.5 * factor for factor in expected[1:]])


def test_the_first_update_of_a_warmup_changes_the_weights(make_trainer):
    trainer = make_trainer(lr_scheduler_type="linear", warmup_steps=1, max_steps=1, rate=1.0)
    start = trained(trainer)
    trainer.train()
    assert any((value - start[name]).norm() > 0 for name, value in trained(trainer).items())


def test_the_record_of_a_run_agrees_with_its_ledger(make_trainer, tmp_path):
    trainer = make_trainer(mechanism=dict(noise_multiplier=1.5, accountant="rdp"), max_steps=3)
    trainer.train()
    record = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert record == trainer.record
    assert record["epsilon_spent"] == epsilon_spent([(1.5, RATE, 3)], 1e-3, "rdp")
    assert (record["steps"], record["sample_rate"], record["noise_multiplier"]) == (3, RATE, 1.5)


def test_the_validation_loss_is_the_mean_over_tokens_as_without_privacy(make_trainer):
    trainer = make_trainer()
    loss = trainer.evaluate()["eval_loss"]
    learner, pad = trainer.learner.eval(), trainer.data_collator.pad
    batch = pad([trainer.train_dataset[record] for record in range(UNITS)])
    learner.reduction = "items"
    assert loss == pytest.approx(learner(batch.student, batch.targets)["loss"].item(), rel=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_the_check_of_gradients_compares_a_sample_with_itself_whatever_the_order_of_lengths(make_trainer, packed):
    """The collator puts the longest first. An image makes the last sample of a model longer than the one before."""
    trainer = make_trainer(packed=packed)
    trainer.synthetic.reverse()
    trainer.preflight()
