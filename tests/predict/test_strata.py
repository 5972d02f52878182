"""Columns and modality of the rows of an evaluation."""

from __future__ import annotations

from collections import Counter

from mllm.dataset.base import SampleDataset
from mllm.engine.answered_rows import Rows
from mllm.engine.evaluation import Evaluation
from mllm.engine.strata import Column
from mllm.predict import strata
from mllm.structures import Sample


class Split(SampleDataset):
    """Rows of two sexes, whose inspections are counted."""

    def __init__(self) -> None:
        self.inspected: Counter[int] = Counter()

    def __len__(self) -> int:
        return 4

    def sample(self, index: int, epoch: int = 0) -> Sample:
        raise NotImplementedError

    def inspect(self, index: int) -> Sample:
        self.inspected[index] += 1
        return Sample([], modality="CT")

    def table_row(self, index: int) -> dict[str, str]:
        return {"sex": "FM"[index % 2]}

    def describe(self, index: int, epoch: int = 0) -> str:
        return f"row {index}"

    def group(self, index: int, epoch: int = 0) -> str | None:
        return None


def test_rows_are_inspected_once_for_all_passes() -> None:
    """The last passes are those of the writers of an evaluation."""
    split, rows = Split(), [(index, {"prediction": "a", "reference": "a"}) for index in (0, 1, 3)]
    evaluation = strata.add_strata(Evaluation(Rows.of(rows), {}, {}, []), split, {}, [Column("sex")])
    assert {value: found["samples"] for value, found in evaluation.strata["sex"].items()} == {"F": 1, "M": 2}
    for _ in range(2):
        found = [(row["modality"], row["columns"]) for row in evaluation.rows]
        assert found == [("CT", {"sex": sex}) for sex in "FMM"]
    assert split.inspected == {0: 1, 1: 1, 3: 1}
