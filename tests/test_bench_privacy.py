"""Benchmarks of privacy: competitors do the same work, and attacks are scored as in their publications."""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "bench"))

import canaries  # noqa: E402
import privacy  # noqa: E402
import privacy_noise  # noqa: E402
import privacy_work  # noqa: E402
from interleaved import worst_difference  # noqa: E402

from mllm.tiny.checkpoints import write_tiny  # noqa: E402


@pytest.fixture
def tiny_work(tmp_path):
    """A function that runs a competitor of the benchmark of privacy with a tiny VaultGemma."""
    checkpoint = str(write_tiny("vaultgemma", tmp_path / "model"))

    def run(competitor, noise=0.0, packed=0):
        options = Namespace(competitor=competitor, physical=6, packed=packed, updates=1, noise=noise)
        train = privacy_work.train_opacus if competitor == "opacus" else privacy_work.train_ours
        return train(privacy_work.Rows("short"), privacy_work.load(checkpoint, 128), str(tmp_path), options)

    return run


def test_without_noise_opacus_and_ours_have_equal_gradients(tiny_work):
    ours, theirs, noisy, plain = (
        tiny_work("private"),
        tiny_work("opacus"),
        tiny_work("private", 0.5),
        tiny_work("plain"),
    )
    assert worst_difference(ours["gradient"], theirs["gradient"]) < 1e-4
    assert worst_difference(tiny_work("private", packed=256)["gradient"], theirs["gradient"]) < 1e-4
    assert worst_difference(noisy["gradient"], ours["gradient"]) > 0.1
    assert worst_difference(plain["gradient"], ours["gradient"]) > 0.01
    runs = [{"seconds": 4.0, "cpu_seconds": 8.0, "bytes": 3e9}, {"seconds": 6.0, "cpu_seconds": 8.0, "bytes": 3e9}]
    line = privacy.row("private", runs, [{"seconds": 2.5, "cpu_seconds": 4.0, "bytes": 2e9}], updates=2)
    assert line == ("| private | 2.50 (2.00-3.00) | 2.00 | 4.00 (4.00-4.00) | 2.00 | 3.00 (3.00-3.00) | 1.50 |")
    assert all(ours[key] > 0 for key in ("seconds", "cpu_seconds", "bytes"))


def test_exposure_is_nine_bits_for_the_first_of_512_and_none_for_the_last():
    losses = np.arange(512.0)
    assert canaries.exposure(losses) == 9 and canaries.exposure(losses[::-1]) == 0
    assert canaries.exposure(np.roll(losses, -3)) == pytest.approx(9 - np.log2(4))
    chance = [canaries.exposure(np.random.default_rng(seed).permutation(losses)) for seed in range(300)]
    assert np.mean(chance) == pytest.approx(1.43, abs=0.2)


def test_the_auc_is_the_fraction_of_correctly_ordered_pairs():
    assert canaries.auc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1
    assert canaries.auc(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == (2 + 0 + 0.5) / 4


def test_one_run_of_the_canaries_has_all_figures_of_the_table(monkeypatch):
    monkeypatch.setattr(canaries, "CODES", 4)
    options = Namespace(seed=1, steps=2, batch=4, rate=1e-3, clip=1.0, findings=6, canaries=2)
    rows = canaries.Rows(6, 2, seed=1)
    held_out = {rows.canary(number).turns[0].text for number in (2, 3)}
    assert len(rows) == 8 and not held_out & {row.turns[0].text for row in rows.rows}
    assert rows.canary(0).turns[1] != rows.canary(0, 1).turns[1] and rows.canary(0) in rows.rows
    runs = {epsilon: [canaries.work(epsilon, options)] for epsilon in (None, 8.0)}
    assert runs[None][0]["spent"] is None and 7 < runs[8.0][0]["spent"] <= 8
    header, rule, plain, private = canaries.table(runs).splitlines()
    assert header.count("|") == rule.count("|") == plain.count("|") == private.count("|")
    assert plain.startswith("| without privacy | infinite | ") and private.startswith("| epsilon 8 | 7.9")


def test_the_benchmark_of_noise_has_a_row_for_each_generator_and_number_of_threads(capsys):
    threads = torch.get_num_threads()
    try:
        privacy_noise.main(["--values", "100", "--rounds", "1", "--threads", "1", "2"])
    finally:
        torch.set_num_threads(threads)
    rows = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines()[2:8]]
    assert rows == [[f"| {kind}", number] for number in "12" for kind in ("torch.randn", "ours", "ours, secure_mode")]
