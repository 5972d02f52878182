"""The benchmarks' own parts: what is measured is the same for both sides, and a table says what the runs said."""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoProcessor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "bench"))

import canaries  # noqa: E402
import grounding  # noqa: E402
import grounding_work  # noqa: E402
import privacy  # noqa: E402
import privacy_work  # noqa: E402
import sft_work  # noqa: E402
from interleaved import Figures, in_fresh_process, resident_memory, table, worst_difference  # noqa: E402

from mllm.dataset.sampler import Draw  # noqa: E402
from mllm.testing.tiny import write_tiny  # noqa: E402

RUNS = {
    "ours": [{"seconds": seconds, "bytes": 2_000_000_000} for seconds in (10.0, 30.0, 11.0)],
    "theirs": [{"seconds": seconds, "bytes": 2_500_000_000} for seconds in (22.0, 21.0, 90.0)],
}


def test_rows_are_the_same_in_every_process_and_for_both_sides():
    first, second = sft_work.Rows(5, pixels=28), sft_work.Rows(7, pixels=28)
    columns = first.columns({"index": list(range(5))})
    for i in range(5):
        ours, again = first.sample(i), second.sample(i)
        assert ours.turns == again.turns
        assert np.array_equal(ours.images[0], again.images[0])
        assert columns["images"][i] == ours.images
        assert f"<image>{columns['prompt'][i][0]['content']}" == ours.turns[0].text
        assert columns["completion"][i][0]["content"] == ours.turns[1].text
    assert first.sample(0).turns != first.sample(1).turns


def test_texts_have_as_many_tokens_as_stated(tiny_medgemma):
    tokenizer = AutoProcessor.from_pretrained(tiny_medgemma).tokenizer
    turns = [sft_work.Rows(40, pixels=1).sample(i).turns for i in range(40)]
    for turn, (least, most) in ((0, sft_work.PROMPT), (1, sft_work.ANSWER)):
        texts = [row[turn].text.replace("<image>", "") for row in turns]
        lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        # The first word, without a space before it, may be up to three pieces.
        assert least <= min(lengths) < least + 40
        assert most - 40 < max(lengths) <= most + 2


def test_a_table_gives_medians_ranges_and_ratios():
    rows = {"fp32": (Figures.of(RUNS["ours"]), Figures.of(RUNS["theirs"]))}
    header, rule, line = table(rows, "ours", "theirs").splitlines()
    assert header.count("|") == rule.count("|") == line.count("|")
    assert line == "| fp32 | 22.0 (21.0-90.0) | 11.0 (10.0-30.0) | **2.00** | 2.50 | 2.00 | 0.80 |"


def test_the_worst_difference_is_relative():
    assert worst_difference([1.0, 20.0], [1.0, 10.0]) == 1.0


def test_memory_is_that_of_the_block():
    size = 64 * 2**20
    before = psutil.Process().memory_info().rss
    with resident_memory() as peak:
        held = np.ones(size, dtype=np.uint8)
    assert peak.bytes > before + 0.9 * held.nbytes
    del held
    with resident_memory() as later:
        pass
    assert later.bytes < peak.bytes - 0.9 * size


def test_a_process_answers_or_ends_the_benchmark(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "if '--fail' in sys.argv: sys.exit('it went wrong')\n"
        "open(sys.argv[-1], 'w').write(json.dumps({'threads': os.environ['OMP_NUM_THREADS'], 'got': sys.argv[1]}))\n"
    )
    assert in_fresh_process(str(script), ["--a=1"], threads=3) == {"threads": "3", "got": "--a=1"}
    with pytest.raises(SystemExit, match="it went wrong"):
        in_fresh_process(str(script), ["--fail"], threads=1)


def test_one_run_of_the_benchmark_of_boxes_gives_every_figure_of_its_table():
    sizes = dict(seed=0, steps=1, samples=4, held_out=2, threads=torch.get_num_threads())
    found = grounding_work.work(Namespace(way="heads", rate=1e-3, **sizes))
    assert len(found["losses"]) == 1 and found["place_tokens"] == 3
    header, rule, scenes, phantoms = grounding.table({"heads": [found, found]}).splitlines()
    assert header.count("|") == rule.count("|") == scenes.count("|") == phantoms.count("|")
    assert scenes.startswith("| scenes: heads | ") and phantoms.startswith("| phantoms: heads | ")


def test_a_place_in_numbers_takes_as_many_tokens_as_the_text_has(tmp_path):
    bundle = grounding_work.load("text", str(tmp_path))
    assert not bundle.model.heads
    # Every character of `[0.120,0.250,0.480,0.760]` is a token of the tiny vocabulary.
    assert grounding_work.place_tokens(bundle, grounding_work.scenes(3, seed=5)) == len("[0.120,0.250,0.480,0.760]")


def test_kept_samples_are_encoded_once_and_stay_as_they_were():
    asked = []

    class Counted:
        def __len__(self):
            return 3

        def __getitem__(self, draw):
            asked.append(draw)
            return object()

    kept = grounding_work.Kept(Counted())
    first = [kept[Draw(index, 0)] for index in (2, 0)]
    assert [kept[Draw(index, 4)] for index in (2, 0)] == first and len(kept) == 3
    assert asked == [Draw(2, 0), Draw(0, 0)]


def test_a_spread_is_the_mean_with_the_least_and_the_greatest_seed():
    assert grounding.spread([0.5, 0.25, 0.75]) == "0.50 (0.25-0.75)"
    assert grounding.spread([None, None]) == ""


@pytest.fixture
def tiny_work(tmp_path):
    """Runs a competitor of the privacy benchmark on a tiny VaultGemma."""
    checkpoint = str(write_tiny("vaultgemma", tmp_path / "model"))

    def run(competitor, noise=0.0):
        options = Namespace(competitor=competitor, physical=6, updates=1, noise=noise)
        train = privacy_work.train_opacus if competitor == "opacus" else privacy_work.train_ours
        return train(privacy_work.Rows(), privacy_work.load(checkpoint), str(tmp_path), options)

    return run


def test_without_noise_opacus_and_ours_clip_the_same_gradients_and_with_it_they_do_not(tiny_work):
    ours, theirs, noisy, plain = (
        tiny_work("private"),
        tiny_work("opacus"),
        tiny_work("private", 0.5),
        tiny_work("plain"),
    )
    assert worst_difference(ours["gradient"], theirs["gradient"]) < 1e-4
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


def test_the_area_is_the_share_of_pairs_in_which_the_member_is_known():
    assert canaries.area(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1
    assert canaries.area(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == (2 + 0 + 0.5) / 4


def test_one_run_of_the_canaries_gives_every_figure_of_its_table(monkeypatch):
    monkeypatch.setattr(canaries, "CODES", 4)
    options = Namespace(seed=1, steps=2, batch=4, rate=1e-3, clip=1.0, findings=6, canaries=2)
    rows = canaries.Rows(6, 2, seed=1)
    held_out = {rows.canary(number).turns[0].text for number in (2, 3)}
    assert len(rows) == 8 and not held_out & {row.turns[0].text for row in rows.rows}
    assert rows.canary(0).turns[1] != rows.canary(0, 1).turns[1] and rows.canary(0) in rows.rows
    found = {epsilon: [canaries.work(epsilon, options)] for epsilon in (None, 8.0)}
    assert found[None][0]["spent"] is None and 7 < found[8.0][0]["spent"] <= 8
    header, rule, plain, private = canaries.table(found).splitlines()
    assert header.count("|") == rule.count("|") == plain.count("|") == private.count("|")
    assert plain.startswith("| without privacy | infinite | ") and private.startswith("| epsilon 8 | 7.9")
