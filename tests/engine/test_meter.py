"""Tests of `mllm.engine.meter` against values computed by hand."""

import time

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator

from mllm.engine.meter import Meter
from mllm.memory import restart_peak
from mllm.structures import Failure, LogicalBatch


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def _batch(tokens, padded, *failures):
    return LogicalBatch([], samples=2, tokens=tokens, padded_tokens=padded, truncated=1, failures=failures)


def test_terms_are_means_over_the_updates_since_the_last_entry(accelerator):
    meter = Meter()
    for update in ([1.0, 2.0], [5.0]):
        for share in update:
            meter.add({"next_token": torch.tensor(share)})
        meter.step()
    meter.step(idle=True)
    assert meter.read(accelerator)["next_token"] == pytest.approx((3 + 5) / 2)
    meter.add({"next_token": torch.tensor(7.0)})
    meter.step()
    assert meter.read(accelerator)["next_token"] == pytest.approx(7)


def test_padding_and_speed_are_counted_since_the_start(accelerator, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = Meter()
    meter.count(_batch(60, 100))
    now[0] = 104.0
    meter.count(_batch(20, 60))
    row = meter.read(accelerator)
    assert row["tokens_per_second"] == pytest.approx(80 / 4)
    assert row["padding_share"] == pytest.approx(80 / 160)
    assert (meter.samples, meter.truncated) == (4, 2)


def test_evaluations_do_not_count_in_the_speed(accelerator, monkeypatch):
    now = [0.5]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = Meter()
    meter.count(_batch(30, 30))
    now[0] = 2.5
    with meter.paused():
        now[0] = 60.0
    now[0] = 61.0
    assert meter.read(accelerator)["tokens_per_second"] == pytest.approx(30 / 3)


def test_the_peak_is_sampled_while_activations_are_alive(accelerator):
    meter = Meter()
    meter.add({"next_token": torch.tensor(1.0)})
    before = meter.read(accelerator)["peak_memory_gb"]
    activations = torch.ones(2**27)
    meter.add({"next_token": activations[0]})
    del activations
    meter.step()
    assert meter.read(accelerator)["peak_memory_gb"] > before + 0.4


def test_a_row_that_fails_in_every_epoch_is_listed_once():
    meter = Meter()
    for _ in range(2):
        meter.count(_batch(1, 1, Failure("rows.jsonl, line 3: no"), Failure("rows.jsonl, line 5: no")))
    assert list(meter.failures) == ["rows.jsonl, line 3: no", "rows.jsonl, line 5: no"]


def test_the_final_figures_cover_the_time_since_the_resume(accelerator, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = Meter()
    assert meter.summary(accelerator, step=40) == {}
    for loss in (3.0, 1.0):
        meter.count(_batch(30, 30))
        meter.step(torch.tensor(loss))
        now[0] += 2
    meter.step(idle=True)
    with meter.paused():
        now[0] = 100.0
    assert meter.summary(accelerator, step=43) == {
        "train_loss": 2.0,
        "train_updates": 2,
        "train_from_step": 40,
        "train_samples": 4,
        "train_samples_per_second": 1.0,
        "train_steps_per_second": 0.5,
    }


def test_exports_and_evaluations_after_the_training_do_not_count(monkeypatch):
    now, peak = [0.5], [1000]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr("mllm.engine.meter.restart_peak", lambda: True)
    monkeypatch.setattr("mllm.engine.meter.peak_memory", lambda: peak[0])
    meter = Meter()
    meter.count(_batch(30, 30))
    now[0] = 3.5
    meter.stop(torch.device("cpu"))
    now[0], peak[0] = 60.0, 9000
    assert meter.seconds == 3.0
    assert meter.peak_of_tensors(torch.device("cpu")) == 1000


@pytest.mark.skipif(not restart_peak(), reason="this system does not count the peak again from a given time")
def test_memory_that_is_freed_before_the_next_backward_counts_and_that_of_the_loading_does_not(accelerator):
    size, meter = 200_000_000, Meter()
    loaded = np.ones(3 * size, np.uint8)
    del loaded
    before = psutil.Process().memory_info().rss
    meter.count(_batch(30, 30))
    freed = np.ones(size, np.uint8)
    del freed
    meter.add({"next_token": torch.tensor(1.0)})
    peak = meter.read(accelerator)["peak_memory_gb"] * 1e9
    assert before + 0.9 * size < peak < before + 1.5 * size
