"""Different texts in a few bytes each, against a dict, and metrics of very many classes."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
from scores import points
from sklearn.metrics import balanced_accuracy_score, f1_score

from mllm.metrics.distinct import DistinctTexts
from mllm.metrics.parts import hash_of
from mllm.metrics.scoring import Series
from mllm.registry import METRICS
from mllm.structures import Answer


@pytest.mark.parametrize(("named", "recent", "merged"), [(1000, 20_000, 100_000), (3, 4, 5), (30, 1, 1)])
def test_texts_are_numbered_as_by_a_dict(named: int, recent: int, merged: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NAMED", named), ("_RECENT", recent), ("_MERGED", merged)):
        monkeypatch.setattr(f"mllm.metrics.distinct.{name}", value)
    draws, texts, expected = random.Random(0), DistinctTexts(), dict[str, int]()
    assert "a" not in texts and len(texts) == 0 and texts.numbers_of(["a"]).tolist() == [0]
    for number in range(200):
        text = f"text {draws.randrange(40)}"
        assert texts.add(text) == hash_of(text)
        expected.setdefault(text, len(expected))
        if number % 23 == 0:
            assert len(texts) == len(expected) and text in texts and "other" not in texts and 3 not in texts
    asked = [*expected, "other"]
    numbers = [*range(len(expected)), len(expected)]
    assert texts.numbers_of(asked).tolist() == numbers
    assert texts.numbers(np.array([*map(hash_of, asked)], np.uint64)).tolist() == numbers
    if len(expected) <= named:
        assert list(texts) == list(expected)


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "choice", "short_answer", "f1"])
def test_figures_of_very_many_classes_are_those_of_few(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are multiplied row by row, and classes are compared by their hashes."""
    draws = random.Random(0)
    pairs = [(f"class {draws.randrange(30)}", f"class {draws.randrange(20)}") for _ in range(300)]

    def result() -> dict[str, float]:
        series = Series(METRICS.find(name))
        for prediction, reference in pairs:
            series.add(Answer(prediction), Answer(reference))
        return series.result(20)

    expected = result()
    for limit, value in (
        ("distinct.NAMED", 2),
        ("distinct._RECENT", 3),
        ("distinct._MERGED", 4),
        ("bootstrap._CHUNK", 5),
    ):
        monkeypatch.setattr(f"mllm.metrics.{limit}", value)
    assert result() == pytest.approx(expected, rel=1e-12)
    answers, references = zip(*pairs, strict=True)
    if name == "balanced_accuracy":
        known = points(expected)["balanced_accuracy"]
        true = [references.index(text) for text in references]
        said = [references.index(text) if text in references else true[0] for text in answers]
        missed = [place for place, text in enumerate(answers) if text not in references]
        for place in missed:  # an answer that is no class is wrong
            said[place] = next(number for number in true if number != true[place])
        assert known == pytest.approx(balanced_accuracy_score(true, said))
    if name == "f1":
        is_label = [text in references for text in answers]
        own = [
            int(said == true) if is_ok else 0 for said, true, is_ok in zip(answers, references, is_label, strict=True)
        ]
        assert points(expected)["f1_samples"] == pytest.approx(np.mean(own))
        labels = sorted(set(references))
        said = [text if is_ok else "none of them" for text, is_ok in zip(answers, is_label, strict=True)]
        assert points(expected)["f1_macro"] == pytest.approx(f1_score(references, said, labels=labels, average="macro"))


@pytest.mark.parametrize("name", ["accuracy", "f1"])
def test_different_references_take_few_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllm.metrics.scoring.FEW", 500)
    monkeypatch.setattr("mllm.metrics.distinct._RECENT", 500)
    monkeypatch.setattr("mllm.metrics.distinct._MERGED", 500)
    series, sizes = Series(METRICS.find(name)), []
    tracemalloc.start()
    for number in range(1, 9001):
        series.add(Answer(f"an answer about image {number}"), Answer(f"a reference about image {number}"))
        if number in (2000, 9000):
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[1] - sizes[0] < 32 * 7000
