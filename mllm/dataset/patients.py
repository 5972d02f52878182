"""Patients of splits, and checks for patients in two splits and for two forms of the id of a patient."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping

import numpy as np

from mllm.dataset.base import SampleDataset
from mllm.dataset.rows import Row
from mllm.dataset.tables.values import loose_form
from mllm.errors import DataError
from mllm.private_messages import row_in_split, row_name


class Patients:
    """Patients of the rows of a split. Adjacent rows of a patient take 36 bytes together.

    Ids are compared by hashes of 64 bits. Before an error the ids are read again from their rows.
    """

    def __init__(self) -> None:
        self._ids, self._forms = array("q"), array("q")
        """Hashes of the patient of each row, and of its `loose_form`."""
        self._indices, self._numbers, self._sources = array("q"), array("q"), array("I")
        """Index of each row in its dataset, its number in the split, and the number of its dataset."""
        self._split = ""
        self._datasets: dict[int, tuple[int, SampleDataset]] = {}
        """Object id of each dataset -> its number, and the dataset."""
        self._with_patient = set[int]()
        """Numbers of the datasets that have a row with a patient."""
        self.unknown = 0
        """Number of rows without a patient."""

    def __len__(self) -> int:
        return len(self.first_rows[0])

    def add(self, patient: str | None, dataset: SampleDataset, index: int) -> None:
        """Add a row. No row can be added after the patients were compared."""
        source, _ = self._datasets.setdefault(id(dataset), (len(self._datasets), dataset))
        if patient is None:
            self.unknown += 1
            return
        self._with_patient.add(source)
        identity = hash(patient)
        if self._ids and self._ids[-1] == identity:
            return
        self._split, number = row_in_split()
        self._ids.append(identity)
        self._forms.append(hash(loose_form(patient)))
        self._indices.append(index)
        self._numbers.append(number)
        self._sources.append(source)

    @functools.cached_property
    def first_rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hashes of all ids, those of their forms, and the place of the first row of each, in the order of the rows."""
        ids, forms = (np.frombuffer(hashes, np.int64) for hashes in (self._ids, self._forms))
        places = np.sort(np.unique(ids, return_index=True)[1])
        return ids[places], forms[places], places

    def row(self, place: int) -> Row:
        """Return the row with a place in `first_rows`."""
        datasets = [dataset for _, dataset in self._datasets.values()]
        position = row_name(self._split, self._numbers[place])
        return Row(datasets[self._sources[place]], self._indices[place], position)

    @property
    def sources_without(self) -> list[SampleDataset]:
        """Source datasets without a row with a patient."""
        return [dataset for number, dataset in self._datasets.values() if number not in self._with_patient]

    def check_forms(self) -> None:
        """Raise `DataError` if two ids differ only in case, in leading zeros or in a separator."""
        _, forms, places = self.first_rows
        order = np.argsort(forms, kind="stable")
        is_repeated = forms[order[1:]] == forms[order[:-1]]
        for later in np.sort(order[1:][is_repeated]).tolist():
            earlier = int(np.flatnonzero(forms == forms[later])[0])
            _check_forms(self.row(int(places[earlier])), self.row(int(places[later])))


def check_leakage(patients: Mapping[str, Patients]) -> None:
    """Raise `DataError` if a patient is in two splits; the message has rows, not the name of the patient.

    Args:
        patients: Patients by name of the split.
    """
    names = list(patients)
    for number, name in enumerate(names):
        for other in names[:number]:
            _compare(name, patients[name], other, patients[other])


def _compare(name: str, later: Patients, other: str, earlier: Patients) -> None:
    """Raise `DataError` if two splits have a patient in common, or two forms of one id."""
    (ids, forms, places), (other_ids, other_forms, other_places) = later.first_rows, earlier.first_rows
    shared = np.flatnonzero(np.isin(ids, other_ids))
    for place in shared.tolist():
        first = earlier.row(int(other_places[np.flatnonzero(other_ids == ids[place])[0]]))
        second = later.row(int(places[place]))
        if _patient_of(first) == _patient_of(second):
            count = "1 patient is" if len(shared) == 1 else f"{len(shared)} patients are"
            message = (
                f"{count} in both {other} and {name}, for example %s and %s: split the rows with PatientSplit, or "
                "rename different patients"
            )
            raise DataError(
                message % (first.location, second.location), reason=message % (first.position, second.position)
            )
    for place in np.flatnonzero(np.isin(forms, other_forms)).tolist():
        match = int(other_places[np.flatnonzero(other_forms == forms[place])[0]])
        _check_forms(earlier.row(match), later.row(int(places[place])))


def _patient_of(row: Row) -> str:
    """Return the patient of a row that has one."""
    return row.dataset.group(row.number) or ""


def _check_forms(first: Row, second: Row) -> None:
    """Raise `DataError` if the ids of two different patients have the same form."""
    if loose_form(_patient_of(first)) == loose_form(_patient_of(second)):
        raise _two_forms(first, second)


def _two_forms(first: Row, second: Row) -> DataError:
    message = (
        "the patients of %s and %s differ only in case, in leading zeros or in a separator: write the id of a patient "
        "in one form in all rows, or rename different patients"
    )
    return DataError(message % (first.location, second.location), reason=message % (first.position, second.position))
