"""Parts of the benchmarks: both competitors do the same work, and tables contain the results of the runs."""

import json
import math
import mmap
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoProcessor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "bench"))

import distillation  # noqa: E402
import distillation_work  # noqa: E402
import grounding  # noqa: E402
import grounding_work  # noqa: E402
import pubmedqa  # noqa: E402
import row_check  # noqa: E402
import row_check_work  # noqa: E402
import sft_work  # noqa: E402
import teacher_cache  # noqa: E402
from interleaved import Figures, in_fresh_process, resident_memory, table, worst_difference  # noqa: E402

from mllm.dataset.loading.sampler import Draw  # noqa: E402
from mllm.tiny.checkpoints import write_tiny  # noqa: E402

RUNS = {
    "ours": [{"seconds": seconds, "bytes": 2_000_000_000} for seconds in (10.0, 30.0, 11.0)],
    "theirs": [{"seconds": seconds, "bytes": 2_500_000_000} for seconds in (22.0, 21.0, 90.0)],
}


def test_rows_are_equal_in_all_processes_and_for_both_competitors():
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


def test_texts_have_the_stated_number_of_tokens(tiny_medgemma):
    tokenizer = AutoProcessor.from_pretrained(tiny_medgemma).tokenizer
    turns = [sft_work.Rows(40, pixels=1).sample(i).turns for i in range(40)]
    for turn, (low, high) in ((0, sft_work.PROMPT), (1, sft_work.ANSWER)):
        texts = [row[turn].text.replace("<image>", "") for row in turns]
        lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        # The first word, without a space before it, may be up to three pieces.
        assert low <= min(lengths) < low + 40
        assert high - 40 < max(lengths) <= high + 2


def test_a_table_contains_medians_ranges_and_ratios():
    rows = {"fp32": (Figures.of(RUNS["ours"]), Figures.of(RUNS["theirs"]))}
    header, rule, line = table(rows, "ours", "theirs").splitlines()
    assert header.count("|") == rule.count("|") == line.count("|")
    assert line == "| fp32 | 22.0 (21.0-90.0) | 11.0 (10.0-30.0) | **2.00** | 2.50 | 2.00 | 0.80 |"


def test_the_worst_difference_is_relative():
    assert worst_difference([1.0, 20.0], [1.0, 10.0]) == 1.0


def test_peak_memory_is_that_of_the_block():
    size = 64 * 2**20
    before = psutil.Process().memory_info().rss
    with resident_memory() as peak:
        pages = mmap.mmap(-1, size)  # new pages, because an array may reuse memory that an earlier test freed
        for _ in range(64):
            pages.write(bytes(2**20))
    assert peak.bytes > before + 0.9 * size
    pages.close()
    with resident_memory() as later:
        pass
    assert later.bytes < peak.bytes - 0.9 * size


def test_a_process_returns_a_result_or_ends_the_benchmark(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "if '--fail' in sys.argv: sys.exit('division by zero')\n"
        "open(sys.argv[-1], 'w').write(json.dumps({'threads': os.environ['OMP_NUM_THREADS'], 'first': sys.argv[1]}))\n"
    )
    assert in_fresh_process(str(script), ["--a=1"], threads=3) == {"threads": "3", "first": "--a=1"}
    with pytest.raises(SystemExit, match="division by zero"):
        in_fresh_process(str(script), ["--fail"], threads=1)


def test_one_run_of_the_benchmark_of_boxes_has_all_figures_of_the_table():
    sizes = dict(seed=0, steps=1, samples=4, held_out=2, threads=torch.get_num_threads())
    result = grounding_work.work(Namespace(method="heads", rate=1e-3, **sizes))
    assert len(result["losses"]) == 1 and result["box_tokens"] == 3
    header, rule, *lines = grounding.table({"heads": [result, result]}).splitlines()
    assert {line.count("|") for line in lines} == {header.count("|")} == {rule.count("|")}
    assert [line.split(" | ")[0] for line in lines] == [f"| {kind}: heads" for kind in grounding.KINDS.values()]


def test_scenes_can_have_one_shape_only():
    alone, several = (grounding_work.scenes(12, seed=7, objects=objects) for objects in (1, 3))
    for index in range(12):
        picture, mask = np.asarray(alone.sample(index).images[0], float), alone.sample(index).marks[0].mask
        # The texture is gray: colored or white pixels belong to the shape.
        is_shape = (np.ptp(picture, axis=2) > 64) | (picture.min(axis=2) > 220)
        assert (is_shape == mask).mean() > 0.99
    is_shape = [np.ptp(np.asarray(several.sample(i).images[0], float), axis=2) > 64 for i in range(12)]
    assert any((one & ~several.sample(i).marks[0].mask).sum() > 100 for i, one in enumerate(is_shape))


def test_both_towers_train_with_both_methods(tmp_path):
    for method in ("text", "heads"):
        trained = [name for name, parameter in grounding_work.load(method, str(tmp_path)).model.named_parameters()
                   if parameter.requires_grad]  # fmt: skip
        assert any("vision_tower" in name for name in trained) and any("language_model" in name for name in trained)


def test_a_box_as_text_has_one_token_per_character(tmp_path):
    bundle = grounding_work.load("text", str(tmp_path))
    assert not bundle.model.heads
    # Every character of `[0.120,0.250,0.480,0.760]` is a token of the tiny vocabulary.
    assert grounding_work.box_tokens(bundle, grounding_work.scenes(3, seed=5)) == len("[0.120,0.250,0.480,0.760]")


def test_samples_are_encoded_once():
    draws = []

    class Counted:
        def __len__(self):
            return 3

        def __getitem__(self, draw):
            draws.append(draw)
            return object()

    samples = grounding_work.EncodedOnce(Counted())
    first = [samples[Draw(index, 0)] for index in (2, 0)]
    assert [samples[Draw(index, 4)] for index in (2, 0)] == first and len(samples) == 3
    assert draws == [Draw(2, 0), Draw(0, 0)]


def test_a_cell_has_the_mean_with_minimum_and_maximum():
    assert grounding.spread([0.5, 0.25, 0.75]) == "0.50 (0.25-0.75)"
    assert grounding.spread([None, None]) == ""


def test_every_second_heart_is_unlabeled_and_hearts_are_generated_once():
    hearts = distillation_work.CachedEchoDataset(labeled=2, unlabeled=3, length=10, seed=0, image_size=48)
    assert [hearts.heart(index) for index in range(10)] == [0, 2, 1, 3, 0, 4, 1, 2, 0, 3]
    known = [all(map(math.isfinite, hearts.measures(index).values())) for index in range(10)]
    assert known == [True, False] * 5
    assert hearts.views(1) is hearts.views(7) and hearts.group(1) == hearts.group(7) != hearts.group(3)
    few = distillation_work.CachedEchoDataset(labeled=2, unlabeled=0, length=5, seed=0, image_size=48)
    assert [few.heart(index) for index in range(5)] == [0, 1, 0, 1, 0]
    assert few.sample(2).images[0].tobytes() == hearts.sample(4).images[0].tobytes()


def test_the_benchmark_of_distillation_trains_a_teacher_and_a_student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distillation_work, "BATCH", 2)
    shared = dict(seed=0, steps=2, labeled=2, unlabeled=2, split="held-out", test_hearts=2, rate=1e-3)
    shared |= dict(threads=torch.get_num_threads(), folder=tmp_path, weight=1.0)
    teacher = distillation_work.work(Namespace(method="teacher", teacher=None, **shared))
    student = distillation_work.work(Namespace(method="grid-unlabeled", teacher=Path(teacher["student"]), **shared))
    assert "feature_match" not in teacher["losses"][0] and student["losses"][0]["feature_match"] > 0
    assert {name: len(values) for name, values in student["errors"].items()} == {"EF": 2, "EDV": 2, "ESV": 2}
    errors = {name: np.array([student["errors"][name]]) for name in distillation.UNITS}
    header, rule, first, second = distillation.table({"alone": errors, "grid-unlabeled": errors}).splitlines()
    assert header.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert second.endswith(" | +0.00 [+0.00, +0.00] |")


def test_an_interval_covers_seeds_and_patients():
    assert distillation.interval(np.full((5, 128), 2.5)) == "2.50 [2.50, 2.50]"
    by_seed, by_patient = np.tile([[0.0], [10.0]], (1, 50)), np.tile(np.arange(50.0), (5, 1))
    assert distillation.interval(by_seed) == "5.00 [0.00, 10.00]"
    low, high = (float(end) for end in distillation.interval(by_patient)[7:-1].split(","))
    # The mean of 50 draws has the standard deviation sqrt((50^2 - 1) / 12 / 50) = 2.04.
    assert abs(low - (24.5 - 1.96 * 2.04)) < 0.4 and abs(high - (24.5 + 1.96 * 2.04)) < 0.4


def test_the_cache_changes_no_loss_and_a_changed_loss_ends_the_benchmark(tmp_path, monkeypatch):
    write_tiny("medsiglip", tmp_path / "teacher", vision=dict(image_size=28, num_hidden_layers=3))
    write_tiny("gemma3n-student", tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(teacher_cache, "BATCH", 2)
    threads = torch.get_num_threads()
    cache, resident, alone = (teacher_cache.work(tmp_path, method, 2, threads) for method in teacher_cache.METHODS)
    assert cache["losses"] == resident["losses"] and len(cache["losses"]) == 6
    assert cache["seconds"] > 0 and cache["bytes"] > 0
    assert cache["first"] == alone["first"] and len(alone["losses"]) == 4
    changes = [(resident | {"losses": [*resident["losses"][:-1], 0.0]}, alone), (resident, alone | {"first": 0.0})]
    for other, student in changes:
        runs = iter([cache, other, student])
        monkeypatch.setattr(teacher_cache, "in_fresh_process", lambda *args, runs=runs: next(runs))
        with pytest.raises(SystemExit, match="the losses differ"):
            teacher_cache.compare(Namespace(rounds=1, samples=2, threads=threads), tmp_path)


def test_held_out_questions_are_not_in_the_training_rows(tmp_path):
    rows = {
        str(n): {
            "QUESTION": f"Is {n} odd?",
            "LONG_ANSWER": f"{n} was divided.",
            "final_decision": "yes" if n % 2 else "no",
        }
        for n in range(10, 22)
    }
    (tmp_path / "ori_pqal.json").write_text(json.dumps(rows))
    sizes = pubmedqa.write_splits(tmp_path / "ori_pqal.json", tmp_path)
    assert sizes == {"long_train": 9, "long_held_out": 3, "decision_train": 9, "decision_held_out": 3}
    texts = {name: (tmp_path / f"{name}.jsonl").read_text() for name in sizes}
    for n, row in enumerate(rows.values()):
        for kind in ("long", "decision"):
            assert (row["QUESTION"] in texts[f"{kind}_held_out"]) == (n % 5 == 0)
            assert (row["QUESTION"] in texts[f"{kind}_train"]) == (n % 5 != 0)
    first = json.loads(texts["decision_held_out"].splitlines()[0])
    assert first == {"question": "10 was divided.\nSo, yes, no or maybe: Is 10 odd?", "answer": "no"}


@pytest.mark.parametrize("kind", list(row_check_work.KINDS))
def test_the_benchmark_of_the_check_of_rows_writes_tables_whose_rows_can_all_be_used(tmp_path, kind):
    options = row_check_work.KINDS[kind](tmp_path, 12)
    figures = {**row_check.work(options), **row_check.kept(options)}
    assert 12 <= figures["rows"] <= 13
    assert figures["cpu"] > 0
    assert figures["kept by the dataset"] > 0
    assert row_check.line(kind, [figures], [figures]).count("|") == 10
