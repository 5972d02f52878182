"""Patients of splits, and checks for patients in two splits and for two forms of the id of a patient."""

from __future__ import annotations

from collections.abc import Mapping

from mllm.dataset.base import SampleDataset
from mllm.dataset.rows import Row
from mllm.dataset.tables.values import loose_form
from mllm.errors import DataError


class Patients:
    """Patients of the rows of a split, each with its first row."""

    def __init__(self) -> None:
        self.first: dict[str, Row] = {}
        self.forms: dict[str, str] = {}
        """`loose_form` of each patient -> the patient."""
        self.unknown = 0
        """Number of rows without a patient."""
        self._has_patient: dict[int, tuple[SampleDataset, bool]] = {}

    def __len__(self) -> int:
        return len(self.first)

    def add(self, patient: str | None, dataset: SampleDataset, index: int) -> None:
        """Add a row.

        Raises:
            DataError: The id differs from that of another patient only in case or in leading zeros.
        """
        known = self._has_patient.get(id(dataset))
        if known is None or (patient is not None and not known[1]):
            self._has_patient[id(dataset)] = dataset, patient is not None
        if patient is None:
            self.unknown += 1
        elif patient not in self.first:
            first_form = self.forms.setdefault(loose_form(patient), patient)
            if first_form != patient:
                raise _two_forms(self.first[first_form], Row.current(dataset, index))
            self.first[patient] = Row.current(dataset, index)

    @property
    def sources_without(self) -> list[SampleDataset]:
        """Source datasets without a row with a patient."""
        return [dataset for dataset, has_patient in self._has_patient.values() if not has_patient]


def check_leakage(patients: Mapping[str, Patients]) -> None:
    """Raise `DataError` if a patient is in two splits; the message has rows, not the name of the patient.

    Args:
        patients: Patients by name of the split.
    """
    names = list(patients)
    for number, name in enumerate(names):
        for other in names[:number]:
            later, earlier = patients[name], patients[other]
            shared = [patient for patient in later.first if patient in earlier.first]
            if shared:
                count = "1 patient is" if len(shared) == 1 else f"{len(shared)} patients are"
                first, second = earlier.first[shared[0]], later.first[shared[0]]
                message = (
                    f"{count} in both {other} and {name}, for example %s and %s: split the rows with PatientSplit, or "
                    "rename different patients"
                )
                raise DataError(
                    message % (first.location, second.location), reason=message % (first.position, second.position)
                )
            for form, patient in later.forms.items():
                if form in earlier.forms:
                    raise _two_forms(earlier.first[earlier.forms[form]], later.first[patient])


def _two_forms(first: Row, second: Row) -> DataError:
    message = (
        "the patients of %s and %s differ only in case or in leading zeros: write the id of a patient in one form in "
        "all rows, or rename different patients"
    )
    return DataError(message % (first.location, second.location), reason=message % (first.position, second.position))
