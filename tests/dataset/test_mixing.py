"""Tests of combined datasets."""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from patient_rows import Rows
from PIL import Image

from mllm.dataset.base import SampleDataset
from mllm.dataset.mixing import ConcatDataset, MixedDataset, PatientSplit, SubsetDataset, position
from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.errors import ConfigError, DataError


def rows(name: str, count: int) -> Rows:
    return Rows(name, [f"{name} {i}" for i in range(count)])


def sources(dataset: SampleDataset, epoch: int = 0) -> list[str]:
    return [dataset.sample(i, epoch).source for i in range(len(dataset))]


def test_concatenation_keeps_the_order():
    a, b = rows("a", 3), rows("b", 2)
    joined = ConcatDataset([a, b])
    assert sources(joined) == sources(a) + sources(b)
    assert joined.sample(3, 7).turns[0].text == "b, line 1, epoch 15"  # of two datasets, the second one
    assert [joined.describe(-1), joined.group(-1)] == ["b, line 2", "b 1"]
    with pytest.raises(IndexError):
        joined.sample(5)
    with pytest.raises(ConfigError, match="at least one dataset"):
        ConcatDataset([])


def test_frequencies_of_a_mixture_are_within_binomial_bounds():
    weights, count = (1.0, 3.0, 0.0, 4.0), 8000
    mixed = MixedDataset([rows(name, 50) for name in "abcd"], weights, size=count, seed=5)
    drawn = Counter(mixed.describe(i)[0] for i in range(count))
    for name, weight in zip("abcd", weights, strict=True):
        share = weight / sum(weights)
        bound = 4.5 * math.sqrt(count * share * (1 - share))
        assert abs(drawn[name] - count * share) <= bound
    # Within a dataset all rows are equally likely: about 80 draws of each of the 50 rows of d.
    per_row = Counter(mixed.describe(i) for i in range(count) if mixed.describe(i)[0] == "d")
    assert len(per_row) == 50
    assert max(abs(n - 80) for n in per_row.values()) < 4.5 * math.sqrt(80)


def mixed_sources(seed: int, epoch: int) -> list[str]:
    return sources(MixedDataset([rows("a", 20), rows("b", 5)], (1, 1), seed=seed), epoch)


def test_a_mixture_is_equal_in_every_process_and_differs_between_epochs():
    first = mixed_sources(1, 2)
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        assert pool.submit(mixed_sources, 1, 2).result() == first
    assert len(first) == 25
    assert mixed_sources(1, 3) != first
    assert mixed_sources(2, 2) != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(weights=(1,)), "weights has 1 numbers for 2 datasets"),
        (dict(weights=(1, -1)), "at least 0"),
        (dict(weights=(0, 0)), "not all 0"),
        (dict(weights=(1, 1), size=0), "size must be at least 1"),
    ],
)
def test_an_invalid_mixture_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MixedDataset([rows("a", 2), rows("b", 2)], **options)


def test_subset_by_portion_size_and_indices():
    whole = rows("a", 100)
    tenth = SubsetDataset(whole, portion=0.1, seed=3)
    assert len(tenth) == 10
    assert sources(tenth) == sources(SubsetDataset(whole, size=10, seed=3))
    assert set(sources(tenth)) < set(sources(SubsetDataset(whole, portion=0.3, seed=3)))
    assert sources(tenth) != sources(SubsetDataset(whole, portion=0.1, seed=4))
    assert sources(SubsetDataset(whole, indices=[7, 2])) == ["a, line 8", "a, line 3"]
    assert len(SubsetDataset(whole, portion=0.001)) == 1


def test_a_combination_has_references_if_a_part_has_some():
    with_answers, without = rows("a", 4), rows("b", 4)
    without.has_references = False
    assert not SubsetDataset(without, size=2).has_references and SubsetDataset(with_answers, size=2).has_references
    for combine in (ConcatDataset, lambda parts: MixedDataset(parts, weights=[1.0] * len(parts))):
        assert combine([without, with_answers]).has_references
        assert not combine([without]).has_references


@pytest.mark.parametrize(
    "options", [{}, dict(portion=0.5, size=2), dict(portion=0), dict(size=101), dict(indices=[100]), dict(indices=[])]
)
def test_an_invalid_subset_is_refused(options):
    with pytest.raises(ConfigError):
        SubsetDataset(rows("a", 100), **options)


def test_rows_of_a_mixture_cannot_be_selected():
    mixed = ConcatDataset([MixedDataset([rows("a", 3)], [1])])
    with pytest.raises(ConfigError, match="use SubsetDataset for the datasets inside"):
        SubsetDataset(mixed, size=1)


def test_patient_split_divides_patients_and_not_rows():
    groups = [f"p{i % 200}" for i in range(1000)]
    splits = {name: PatientSplit(Rows("a", groups), name, seed=1) for name in ("train", "validation", "test")}
    assert sorted(s for split in splits.values() for s in sources(split)) == sorted(sources(Rows("a", groups)))
    patients = {name: {split.group(i) for i in range(len(split))} for name, split in splits.items()}
    for name, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(len(patients[name]) - 200 * share) < 4.5 * math.sqrt(200 * share * (1 - share))
    assert not patients["train"] & patients["test"] and not patients["train"] & patients["validation"]


def test_the_split_of_a_patient_is_constant_when_rows_are_added_or_shuffled():
    old = [f"p{i}" for i in range(100)]
    new = [f"q{i}" for i in range(50)] + old[::-1]
    for name in ("train", "validation", "test"):
        before = PatientSplit(Rows("a", old), name)
        after = PatientSplit(Rows("a", new), name)
        common = {after.group(i) for i in range(len(after))} & set(old)
        assert common == {before.group(i) for i in range(len(before))}


def test_positions_are_constant():
    # blake2b of "0:patient 1", computed independently. Splits of published runs must not change with a new version.
    assert position("patient 1", 0) == pytest.approx(0.34045585317506555, abs=1e-12)
    assert 0 <= position("x", 1) < 1


def test_patient_split_requires_patients_and_refuses_an_empty_split():
    with pytest.raises(DataError, match=r"^a, line 2: the row has no patient"):
        PatientSplit(Rows("a", ["p", None]))
    with pytest.raises(DataError, match="assigns none of 1 rows to 'test'"):
        PatientSplit(Rows("a", ["p"]), "test", (1.0, 0.0, 0.0))
    with pytest.raises(ConfigError, match="fractions must be three numbers"):
        PatientSplit(Rows("a", ["p"]), "test", (0.5, 0.2, 0.2))
    with pytest.raises(ConfigError, match="split must be one of train, validation, test"):
        PatientSplit(Rows("a", ["p"]), "val")
    assert len(PatientSplit(Rows("a", ["unreadable"]), "train", (0.0, 0.0, 1.0))) == 1


def test_every_draw_of_a_row_in_an_epoch_has_its_own_random_numbers():
    mixed = MixedDataset([rows("a", 1), MixedDataset([rows("b", 1)], [1])], [1, 1], size=8)
    texts = [mixed.sample(i, epoch).turns[0].text for epoch in (0, 1) for i in range(8)]
    assert len(set(texts)) == 16
    assert texts == [mixed.sample(i - 8, epoch).turns[0].text for epoch in (0, 1) for i in range(8)]


def test_repeated_draws_of_an_image_are_augmented_differently(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "question": "what?", "answer": "this"}\n')
    noise = [dict(type="GaussianNoise", std=20)]
    mixed = MixedDataset([VQADataset(tmp_path / "rows.jsonl", transforms=noise)], [1], size=4)
    drawn = [mixed.sample(i).images[0].tobytes() for i in range(4)]
    assert len(set(drawn)) == 4
    assert drawn == [mixed.sample(i).images[0].tobytes() for i in range(4)]


def test_a_row_that_is_repeated_by_hand_has_its_own_random_numbers_each_time():
    def texts(dataset, epochs=(0, 1, 2)):
        return [dataset.sample(i, epoch).turns[0].text for epoch in epochs for i in range(len(dataset))]

    for repeated in (
        ConcatDataset([rows("a", 2), rows("a", 2), rows("a", 2)]),
        SubsetDataset(rows("a", 3), indices=[1, 0, 1, 1]),
        SubsetDataset(ConcatDataset([rows("a", 2), rows("a", 2)]), indices=[0, 2, 0, 3]),
    ):
        assert len(set(texts(repeated))) == 3 * len(repeated)
        assert texts(repeated) == texts(repeated)
        assert repeated.sample(-1, 1) == repeated.sample(len(repeated) - 1, 1)
    # Rows that are selected once are drawn as without the selection.
    a = rows("a", 3)
    assert texts(SubsetDataset(a, indices=[2, 0])) == [a.sample(i, e).turns[0].text for e in (0, 1, 2) for i in (2, 0)]


def test_the_rows_of_a_selection_come_from_their_source():
    a, b = rows("a", 2), rows("b", 2)
    part = SubsetDataset(ConcatDataset([a, SubsetDataset(b, indices=[1, 0])]), indices=[0, 2])
    assert list(part.rows()) == [(a, 0), (b, 1)]


@pytest.mark.parametrize("ids", [["17", "017"], ["A1", "a1"]])
def test_patient_split_refuses_two_forms_of_an_id(ids):
    with pytest.raises(DataError, match="a, line 1 and a, line 2 differ only in case, in leading"):
        PatientSplit(Rows("a", ids))


@st.composite
def nestings(draw, depth=3):
    """A dataset of random nesting over two sources, which may be shared or built anew, as a config does."""
    kinds = ["concat", "subset", "mixed"] if depth else []
    kind = draw(st.sampled_from(kinds if depth == 3 else ["rows", *kinds]))
    if kind == "rows":
        return rows(*draw(st.sampled_from([("a", 2), ("a", 2), ("b", 3)])))
    if kind == "subset":
        dataset = draw(nestings(depth - 1).filter(lambda part: part.fixed))
        return SubsetDataset(dataset, indices=draw(st.lists(st.integers(0, len(dataset) - 1), min_size=1, max_size=5)))
    parts = draw(st.lists(nestings(depth - 1), min_size=1, max_size=3))
    parts += [parts[0]] * draw(st.integers(0, 1))
    if kind == "concat":
        return ConcatDataset(parts)
    return MixedDataset(parts, [1] * len(parts), size=draw(st.integers(1, 9)), seed=draw(st.integers(0, 2)))


@given(nestings())
@example(ConcatDataset([SubsetDataset(rows("a", 2), indices=[0, 0]), rows("a", 2)]))
@example(MixedDataset([ConcatDataset([rows("a", 2), rows("a", 2)]), rows("a", 2)], [1, 1], size=9))
@example(ConcatDataset([MixedDataset([rows("a", 1)], [1], size=3), SubsetDataset(rows("a", 1), indices=[0, 0, 0])]))
def test_all_draws_of_a_row_in_a_run_have_different_random_numbers(dataset):
    places = [(index, epoch) for epoch in range(3) for index in range(len(dataset))]
    texts = [dataset.sample(*place).turns[0].text for place in places]  # a text is file, line and epoch
    assert len(set(texts)) == len(texts)
    for place, text in zip(places, texts, strict=True):
        assert text.startswith(f"{dataset.describe(*place)}, epoch ")
        assert dataset.group(*place) == dataset.sample(*place).group
    known = {(id(source), index) for source, index in dataset.rows()}
    for index in range(len(dataset)):
        assert dataset.inspect(index).group == dataset.sample(index).group
        assert dataset.sample(index - len(dataset), 1) == dataset.sample(index, 1)
        assert dataset.plain(index).source == dataset.sample(index).source
    assert all((id(source), row) in known for source, row, _ in (dataset.draw(*place) for place in places))


def test_a_fixed_nesting_without_repetitions_keeps_the_epoch():
    dataset = SubsetDataset(SubsetDataset(rows("a", 6), indices=[5, 1, 3]), indices=[2, 0])
    assert [dataset.sample(i, 4).turns[0].text for i in (0, 1)] == ["a, line 4, epoch 4", "a, line 6, epoch 4"]
