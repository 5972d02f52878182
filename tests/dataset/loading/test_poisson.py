"""Tests of Poisson sampling."""

import numpy as np
import pytest
from patient_rows import Rows

from mllm.dataset.base import SampleDataset
from mllm.dataset.loading.collator import LogicalCollator
from mllm.dataset.loading.poisson import PoissonSampler, units_of
from mllm.dataset.mixing import ConcatDataset, SubsetDataset
from mllm.errors import ConfigError, DataError
from mllm.structures import Sample

SECRET = bytes(range(32))


def single(size):
    return [[index] for index in range(size)]


def drawn(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return [[draw.index for draw in update] for update in sampler]


def test_every_unit_is_drawn_with_the_rate_independently_of_the_others():
    sampler = PoissonSampler(single(50), 0.2, secret=SECRET)
    draws = np.zeros((4000, 50))
    for update in range(4000):
        draws[update, sampler.draw(update)] = 1
    assert draws.mean(axis=0) == pytest.approx(0.2, abs=0.03)
    sizes = draws.sum(axis=1)
    assert sizes.mean() == pytest.approx(10, rel=0.02)
    assert sizes.var() == pytest.approx(50 * 0.2 * 0.8, rel=0.1), "a binomial number of units"
    correlation = np.corrcoef(draws.T) - np.eye(50)
    assert abs(correlation).max() < 0.08
    after = ((draws[1:] - 0.2) * (draws[:-1] - 0.2)).mean()
    assert abs(after) < 0.005, "updates are correlated"


def test_draws_are_a_function_of_secret_and_update():
    sampler = PoissonSampler(single(30), 0.3, secret=SECRET)
    again = PoissonSampler(single(30), 0.3, secret=SECRET)
    assert len(sampler) == 4
    assert drawn(sampler, 0) + drawn(sampler, 1) == [again.draw(update) for update in range(8)]
    assert [again.draw(update) for update in range(8)] != [
        PoissonSampler(single(30), 0.3, secret=bytes(32)).draw(update) for update in range(8)
    ]


def test_all_processes_share_one_draw():
    whole = drawn(PoissonSampler(single(40), 0.25, secret=SECRET))
    shares = [drawn(PoissonSampler(single(40), 0.25, secret=SECRET, rank=rank, world=3)) for rank in range(3)]
    for update, expected in enumerate(whole):
        parts = [shares[rank][update] for rank in range(3)]
        assert sorted(sum(parts, [])) == expected
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_an_update_may_be_empty_and_its_batch_has_no_piece():
    updates = drawn(PoissonSampler(single(4), 0.1, secret=SECRET))
    assert [] in updates
    batch = LogicalCollator(pad=lambda samples: None, samples_per_piece=2)([])
    assert (batch.pieces, batch.samples, batch.tokens) == ([], 0, 0)


@pytest.mark.parametrize(("size", "expected", "updates"), [(900, 8, 113), (100, 10, 10), (7, 7, 1), (3, 2, 2)])
def test_an_epoch_has_as_many_updates_as_with_shuffling(size, expected, updates):
    assert len(PoissonSampler(single(size), expected / size, secret=SECRET)) == updates


def test_at_rate_1_all_units_are_drawn():
    assert drawn(PoissonSampler(single(5), 1.0, secret=SECRET)) == [[0, 1, 2, 3, 4]]


def test_the_samples_of_a_patient_are_adjacent_and_limited():
    units = [[0, 3, 5, 6], [1], [2, 4]]
    for update in PoissonSampler(units, 0.5, secret=SECRET):
        numbers = [draw.unit for draw in update]
        assert numbers == sorted(numbers)
        for number in set(numbers):
            assert [draw.index for draw in update if draw.unit == number] == units[number]
    limited, drawn_samples = PoissonSampler(units, 0.5, secret=SECRET, max_samples=2), set()
    for epoch in range(40):
        limited.set_epoch(epoch)
        for update in limited:
            indices = [draw.index for draw in update if draw.unit == 0]
            assert len(indices) in (0, 2)
            assert indices == sorted(indices)
            drawn_samples.update(indices)
    assert drawn_samples == set(units[0]), "every sample of a patient is drawn in some update"


def test_a_unit_that_an_epoch_draws_twice_has_other_random_numbers():
    sampler, numbers = PoissonSampler(single(30), 0.3, secret=SECRET), {}
    for epoch in range(5):
        sampler.set_epoch(epoch)
        for update in sampler:
            for draw in update:
                numbers.setdefault(draw.index, []).append(draw.epoch)
    assert any(len(drawn) > 5 for drawn in numbers.values()), "more draws than epochs"
    assert all(len(set(drawn)) == len(drawn) for drawn in numbers.values())


class Visits(SampleDataset):
    """Rows with patients."""

    def __init__(self, *patients):
        self.patients = patients

    def __len__(self):
        return len(self.patients)

    def sample(self, index, epoch=0):
        return Sample([])

    def describe(self, index, epoch=0):
        return f"visits.csv, line {index + 2}"

    def group(self, index, epoch=0):
        return self.patients[index]


def test_units_are_samples_or_all_samples_of_a_patient():
    visits = Visits("a", "b", "a", "c")
    assert units_of(visits, "sample") == [[0], [1], [2], [3]]
    assert units_of(visits, "patient") == [[0, 2], [1], [3]]


@pytest.mark.parametrize(
    "repeated",
    [
        SubsetDataset(Visits("a", "b"), indices=[0, 1, 0]),
        ConcatDataset([Visits("a", "b"), SubsetDataset(Visits("a", "b"), indices=[0])]),
    ],
)
def test_a_row_that_is_two_samples_is_refused_for_the_unit_sample(repeated):
    with pytest.raises(ConfigError) as error:
        units_of(repeated, "sample")
    end = "is in data_args.train twice, but privacy_args.unit='sample' counts it as two samples"
    assert str(error.value) == f"visits.csv, line 2 {end}: select each row once, or set unit to 'patient'"
    assert error.value.reason == f"a row {end}: select each row once, or set unit to 'patient'"
    assert units_of(repeated, "patient") == [[0, 2], [1]]
    other = ConcatDataset([Visits("a"), Rows("other", ["a"])])
    assert units_of(other, "sample") == [[0], [1]]


def test_a_row_without_a_patient_is_refused_for_the_unit_patient():
    with pytest.raises(DataError) as error:
        units_of(Visits("a", None), "patient")
    assert str(error.value) == (
        "visits.csv, line 3 has no patient, but privacy_args.unit='patient' protects patients: "
        "add the patient to every row, or set unit to 'sample'"
    )
