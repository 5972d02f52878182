"""Metrics of many answers, of which only sums by random groups of patients are in memory, against those of few."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scores import points

from mllm.metrics.base import PartedMetric, content_read
from mllm.metrics.parts import UNITS, EntrySums, KeyCounts, PartFile, mapped, unit_of
from mllm.metrics.scoring import Series
from mllm.registry import METRICS
from mllm.structures import Answer, Mark

CLASSES = ("no finding", "edema", "pneumonia", "effusion")
METRIC_NAMES = (
    *("accuracy", "balanced_accuracy", "choice", "short_answer", "f1", "chexpert_f1", "exact_match", "bleu"),
    *("mae", "r2", "limits_of_agreement", "measures", "ece", "brier", "detection_f1"),
    *("auroc", "auprc", "sensitivity_at_specificity", "cider", "coco_ap"),
)


def pairs(name: str, count: int, per_patient: int = 3) -> Iterator[tuple[Answer, Answer]]:
    """Yield answers of different patients who differ; some have no patient, and some answers cannot be read.

    A reference that decides how the others are read is among the last ones: a class, a label and the largest number.
    """
    draws, content = random.Random(0), content_read(METRICS.find(name))
    for number in range(count):
        patient, is_last = number // per_patient, number > 0.9 * count
        skill = random.Random(patient).random()
        true = draws.choice(CLASSES[: 4 if is_last else 3])
        said = true if draws.random() < skill else draws.choice([*CLASSES, "perhaps", f"{true} {number}"])
        scores: dict[str, float] = {}
        marks: list[tuple[Mark, ...]] = [(), ()]
        if content in ("number", "measures"):
            value = draws.uniform(20, 80 + 900 * is_last)
            form = "EF {:.1f} %, EDV 100 mL" if content == "measures" and number % 2 else "EF {:.1f} %"
            form = form if content == "measures" else "{:.1f}"
            true, said = form.format(value), form.format(value + (1 - skill) * draws.gauss(0, 9))
            said = said if draws.random() < 0.9 else "unclear"
        elif name in ("f1", "chexpert_f1"):
            true, said = f"{true}; effusion", f"effusion; {said}"
        elif content in ("objects", "box"):
            marks = [(Mark(box=(0, 0, 10, 10 + end)),) for end in (0, draws.choice([0, 30]))]
        elif METRICS.find(name).needs_scores:
            parts = [draws.random() for _ in CLASSES]
            scores = {option: part / sum(parts) for option, part in zip(CLASSES, parts, strict=True)}
        group = None if patient % 4 == 0 else f"P{patient}"
        yield Answer(said, marks[1], scores=scores), Answer(true, marks[0], group=group)


def result(name: str, count: int, resamples: int = 2, **options: int) -> dict[str, float]:
    """Return the figures of a metric."""
    series = Series(METRICS.find(name))
    assert isinstance(series.metric, PartedMetric)
    for pair in pairs(name, count, **options):
        series.add(*pair)
    return series.result(resamples)


@pytest.mark.parametrize("name", METRIC_NAMES)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 120))
def test_figures_do_not_depend_on_the_parts(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = points(result(name, 120))
    with monkeypatch.context() as patched:
        patched.setattr("mllm.metrics.scoring.FEW", size)
        figures = points(result(name, 120))
    assert 30 < figures.pop("interval_groups") <= 60, "30 patients, and the answers of 10 others one by one"
    assert figures == pytest.approx(expected, rel=1e-12, nan_ok=True) and list(figures) == list(expected)


@pytest.mark.parametrize(("name", "figure"), [("accuracy", "accuracy"), ("mae", "mae"), ("f1", "f1_macro")])
def test_intervals_of_groups_are_those_of_patients(name: str, figure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 resamples: the standard error of a limit is about 7 % of half of the interval's width."""
    exact = result(name, 2400, 1000)
    monkeypatch.setattr("mllm.metrics.scoring.FEW", 500)
    grouped = result(name, 2400, 1000)
    assert grouped["interval_groups"] > 1000
    half = (exact[f"{figure}_ci_high"] - exact[f"{figure}_ci_low"]) / 2
    for end in ("_ci_low", "_ci_high"):
        assert grouped[figure + end] == pytest.approx(exact[figure + end], abs=0.25 * half)
    ignored = result(name, 2400, 1000, per_patient=1)
    narrow = (ignored[f"{figure}_ci_high"] - ignored[f"{figure}_ci_low"]) / 2
    assert name != "accuracy" or narrow < 0.9 * half, "the comparison would see patients that are torn apart"


def test_answers_about_few_patients_are_resampled_by_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve patients of 100 answers each: nine have a name, and are drawn together."""
    exact = result("accuracy", 1200, 2000, per_patient=100)
    monkeypatch.setattr("mllm.metrics.scoring.FEW", 300)
    grouped = result("accuracy", 1200, 2000, per_patient=100)
    widths = [figures["accuracy_ci_high"] - figures["accuracy_ci_low"] for figures in (exact, grouped)]
    assert 300 - 9 < grouped["interval_groups"] <= 300 + 9, "few of 309 patients share a group"
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_an_answer_is_in_the_unit_of_its_patient() -> None:
    assert unit_of("P1", 5) == unit_of("P1", 99_999) != unit_of("P2", 5)
    for used in (
        {unit_of(f"P{number}", 0) for number in range(4 * UNITS)},
        {unit_of(None, 2 * number) for number in range(4 * UNITS)},
    ):
        assert len(used) == pytest.approx(UNITS * (1 - np.exp(-4)), rel=0.01), "all units are equally probable"


def test_entries_of_equal_unit_and_class_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllm.metrics.parts._MERGED", 20)
    rng = np.random.default_rng(0)
    sums, expected = EntrySums(5), np.zeros((7, 5))
    for _ in range(9):
        units, classes, values = rng.integers(0, 7, 8), rng.integers(0, 5, 8), rng.integers(1, 9, 8)
        sums.add(units, classes, values)
        np.add.at(expected, (units, classes), values)
    weights = rng.integers(0, 3, (4, 7)).astype(float)
    assert (sums.counts()(weights) == weights @ expected).all()


def test_a_full_disk_names_the_folder_of_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def dump(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pickle.dump", dump)
    with pytest.raises(OSError, match="No space left") as error:
        PartFile().append([1])
    assert error.value.filename


def test_rows_without_patients_have_intervals_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second question is more difficult. The standard error of 200 resamples is about 5 % of the width."""
    draws = np.random.default_rng(0).random(200_000)
    widths = []
    for ordered in (False, True):
        series = Series(METRICS.find("exact_match"))
        chances = np.tile([0.95, 0.55], len(draws) // 2)
        right = draws < (np.sort(chances) if ordered else chances)
        for is_right in right.tolist():
            series.add(Answer("a" if is_right else "b"), Answer("a"))
        figures = series.result(200)
        widths.append(figures["exact_match_ci_high"] - figures["exact_match_ci_low"])
    expected = 2 * 1.96 * np.sqrt(0.75 * 0.25 / len(draws))
    assert widths == pytest.approx([expected, expected], rel=0.2)


@pytest.mark.parametrize("merged", [10, 100, 10_000])
def test_numbers_of_equal_keys_are_summed_in_memory_and_in_a_file(merged: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllm.metrics.parts._MERGED", merged)
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 2**64, 60, np.uint64)
    counts, expected = KeyCounts(2), dict[int, np.ndarray]()
    for _ in range(40):
        keys, values = rng.choice(pool, 7), rng.integers(0, 9, (7, 2))
        counts.add(keys, values)
        for key, row in zip(keys.tolist(), values, strict=True):
            expected[key] = expected.get(key, 0) + row
    for _ in range(2):  # it is read again, also after more numbers
        parts = list(counts)
        keys, sums = (np.concatenate(column) for column in zip(*parts, strict=True))
        assert keys.tolist() == sorted(expected)
        assert sums.tolist() == [expected[key].tolist() for key in sorted(expected)]
        assert (len(parts) > 1) == (merged < 200)
        counts.add(pool[:1], np.array([[1, 2]]))
        expected[int(pool[0])] = expected.get(int(pool[0]), 0) + np.array([1, 2])


@pytest.mark.parametrize("name", ["accuracy", "mae", "auroc", "brier", "ece", "cider", "coco_ap", "detection_f1"])
def test_memory_does_not_grow_with_the_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 more answers may leave 5 bytes each, such as the places of parts in a file."""
    monkeypatch.setattr("mllm.metrics.scoring.FEW", 500)
    series, sizes = Series(METRICS.find(name)), []
    tracemalloc.start()
    for number, pair in enumerate(pairs(name, 4500), start=1):
        series.add(*pair)
        if number in (2500, 4500):
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[1] - sizes[0] < 10_000


def test_columns_of_parts_are_joined_in_files() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.integers(0, 2**64, size, np.uint64), rng.integers(0, 9, size)) for size in (3, 0, 5)]
    for joined, columns in zip(mapped(iter(parts), (np.uint64, np.int64)), zip(*parts, strict=True), strict=True):
        assert joined.tolist() == np.concatenate(columns).tolist()
    assert [len(column) for column in mapped([], (np.uint64, np.int64))] == [0, 0]
