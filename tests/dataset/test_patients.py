"""Patients in arrays of hashes, compared with sets."""

import random
import tracemalloc

import pytest

from mllm.dataset.base import SampleDataset
from mllm.dataset.patients import Patients, check_leakage
from mllm.errors import DataError
from mllm.private_messages import in_row
from mllm.structures import Sample


class Groups(SampleDataset):
    def __init__(self, name, patients):
        self.name, self.patients = name, patients

    def __len__(self):
        return len(self.patients)

    def sample(self, index, epoch=0):
        return Sample([], group=self.patients[index])

    def describe(self, index, epoch=0):
        return f"{self.name}, line {index + 1}"

    def group(self, index, epoch=0):
        return self.patients[index]


def patients_of(split, *datasets):
    found, number = Patients(), 0
    for dataset in datasets:
        for index, patient in enumerate(dataset.patients):
            with in_row(split, number):
                found.add(patient, dataset, index)
            number += 1
    return found


@pytest.mark.parametrize("seed", range(5))
def test_patients_are_counted_and_compared_as_by_sets(seed):
    draw = random.Random(seed)
    ids = [draw.choice([None, *(f"P{number}" for number in range(10, 60))]) for _ in range(80)]
    others = [f"Q{number}" for number in range(10)] + [draw.choice(["P70", *ids]) for _ in range(seed)]
    parts = Groups("a", ids[:50]), Groups("b", ids[50:])
    train, test = patients_of("train", *parts), patients_of("test", Groups("t", others))
    assert (len(train), train.unknown) == (len({*ids} - {None}), ids.count(None))
    train.check_forms()
    shared = [patient for patient in dict.fromkeys(others) if patient is not None and patient in ids]
    if not shared:
        check_leakage({"train": train, "test": test})
        return
    place = ids.index(shared[0])
    first = f"a, line {place + 1}" if place < 50 else f"b, line {place - 49}"
    count = "1 patient is" if len(shared) == 1 else f"{len(shared)} patients are"
    second = others.index(shared[0]) + 1
    with pytest.raises(DataError) as raised:
        check_leakage({"train": train, "test": test})
    assert str(raised.value).startswith(f"{count} in both train and test, for example {first} and t, line {second}:")
    assert f"for example train, row {place + 1} and test, row {second}:" in raised.value.reason


def test_the_first_two_forms_of_an_id_are_named():
    forms = Groups("a", ["x", "P7", "y", "P7", "p007", "Y"])
    with pytest.raises(DataError, match="the patients of a, line 2 and a, line 5 differ only in case"):
        patients_of("train", forms).check_forms()


def test_a_patient_takes_some_tens_of_bytes():
    rows = Groups("a", [f"patient {number}" for number in range(5000)])
    patients_of("train", rows)
    tracemalloc.start()
    patients = patients_of("train", rows)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(patients) == 5000 and kept < 45 * 5000
