"""Classes of users that read rows without a table: their exceptions name the row, and their patients have one form."""

import pytest

from mllm.dataset.base import SampleDataset
from mllm.dataset.checking import check_splits
from mllm.dataset.mixing import ConcatDataset, PatientSplit
from mllm.errors import ConfigError, DataError
from mllm.structures import Sample, Turn


class Own(SampleDataset):
    """Rows of given patients. `sample` calls `read` with the index first."""

    def __init__(self, patients, read=lambda index: None, of_sample=None):
        self.patients, self.read = patients, read
        self.of_sample = patients if of_sample is None else of_sample

    def __len__(self):
        return len(self.patients)

    def sample(self, index, epoch=0):
        self.read(index)
        return Sample([Turn("user", "Why?"), Turn("assistant", "So.")], group=self.of_sample[index])

    def describe(self, index, epoch=0):
        return f"own row {index}"

    def group(self, index, epoch=0):
        return self.patients[index]


def fails(error):
    def read(index):
        if index == 1:
            raise error

    return read


@pytest.mark.parametrize("error", [KeyError("age"), ZeroDivisionError("zero"), StopIteration(), IndexError("frame")])
def test_an_unexpected_exception_names_its_row_and_the_row_can_be_skipped(error):
    data = Own(["a", "b", "c"], fails(error))
    message = rf"own row 1: it cannot be used \({type(error).__name__}"
    with pytest.raises(DataError, match=message):
        check_splits({"train": data})
    report = check_splits({"train": ConcatDataset([data])}, skip=True).reports["train"]
    assert len(report.skipped) == 1 and report.patients == 2
    with pytest.raises(DataError, match=message) as info:
        data.measures(1)
    assert "age" not in info.value.reason and "zero" not in info.value.reason


def test_a_loop_over_a_dataset_ends():
    assert [sample.group for sample in Own(["a", "b"])] == ["a", "b"]


def test_another_result_than_a_sample_is_refused():
    class Nothing(Own):
        def sample(self, index, epoch=0):
            return None

    with pytest.raises(ConfigError, match=r"Nothing.sample must return a Sample, not NoneType"):
        Nothing(["a"]).sample(0)


def test_forms_of_a_patient_are_one_patient():
    data = Own([17, 17.0, " 17 ", "A1", "A1 ", None])
    assert [data.group(index) for index in range(6)] == ["17", "17", "17", "A1", "A1", None]
    assert data.sample(1).group == "17"
    with pytest.raises(DataError, match="1 patient is in both train and test, for example own row 0 and own row 0"):
        check_splits({"train": Own([17, "b"]), "test": Own(["17.0"])})
    rows = [form for number in range(20) for form in (number, f"{number}.0 ")]
    for part in ("train", "validation"):
        split = PatientSplit(Own(rows), part, (0.5, 0.5, 0))
        groups = [split.group(index) for index in range(len(split))]
        assert groups and all(groups.count(group) == 2 for group in groups)
    with pytest.raises(DataError, match="own row 0: field 'group' must be the id of a patient"):
        Own([["a"]]).group(0)


def test_a_sample_of_another_patient_than_its_group_is_refused():
    check_splits({"train": Own(["a", "b"], of_sample=[None, None])})
    with pytest.raises(
        DataError, match=r"own row 0: Own.sample returns another patient than Own.group: return the same"
    ):
        check_splits({"train": Own(["a", "b"], of_sample=["c", "b"])})
