"""Strata of rows, and their figures against those of the rows alone."""

from __future__ import annotations

import pytest
from scores import score

from mllm.engine.answered_rows import Rows
from mllm.engine.strata import Column, stratified
from mllm.errors import ConfigError
from mllm.metrics.classification import Accuracy
from mllm.report.figures import strata_table


def rows(count: int = 40) -> list[dict]:  # type: ignore[type-arg]
    """Rows of 20 patients; the model is right for women, for whom the first 24 rows are."""
    return [
        {
            "reference": "yes" if i % 2 else "no",
            "prediction": "yes" if i < 24 and i % 2 else "no",
            "patient": f"{i // 2}",
        }
        | {"modality": "CT" if i % 2 else "MR", "columns": {"sex": "F" if i < 24 else "M", "age": f"{20 + i}"}}
        for i in range(count)
    ]


def of(listed: list[dict]) -> Rows:  # type: ignore[type-arg]
    """Return rows that are read for each pass."""
    return Rows.of([*enumerate(listed)])


def test_figures_of_a_stratum_are_those_of_its_rows_and_small_strata_have_no_intervals() -> None:
    strata = stratified(of(rows()), {"accuracy": Accuracy}, [Column("sex"), Column("modality")])
    women, men = strata["sex"]["F"], strata["sex"]["M"]
    assert (women["samples"], women["patients"], women["small"]) == (24, 12, False)
    assert (men["samples"], men["patients"], men["small"]) == (16, 8, True)
    assert women["figures"]["accuracy"]["accuracy"] == 1
    alone = score(Accuracy, [row["prediction"] for row in rows()[24:]], [row["reference"] for row in rows()[24:]])
    assert men["figures"]["accuracy"] == alone
    assert women["figures"]["accuracy"]["accuracy_ci_low"] == 1
    assert [part["samples"] for part in strata["modality"].values()] == [20, 20]
    lines = strata_table(strata).splitlines()
    assert lines[0].split() == ["stratum", "value", "samples", "patients", "accuracy"]
    assert lines[2].split() == ["sex", "F", "24", "12", "accuracy", "1.0000", "[1.0000,", "1.0000]"]
    assert lines[3].split() == ["sex", "M", "16", "8", "*", "accuracy", "0.5000"]
    assert lines[-1] == "* fewer than 10 patients: too few for an interval"


def test_numbers_are_divided_at_stated_bounds_or_at_their_quartiles() -> None:
    """Ages are 20 to 59; one is unknown."""
    some = rows()
    del some[39]["columns"]["age"]
    strata = stratified(of(some), {}, [Column.parse("age:18,40,50")])["age"]
    assert [(value, part["samples"]) for value, part in strata.items()] == [
        ("18 <= age < 40", 20),
        ("40 <= age < 50", 10),
        ("age >= 50", 9),
        ("unknown", 1),
    ]
    quartiles = stratified(of(rows()), {}, [Column("age")])["age"]
    assert list(quartiles) == [
        "age < 29.75",
        "29.75 <= age < 39.5",
        "39.5 <= age < 49.25",
        "age >= 49.25",
    ]
    few = [
        {**row, "patient": None, "columns": {"stage": value}} for row, value in zip(rows(4), (10, 2, 2, 1), strict=True)
    ]
    stages = stratified(of(few), {}, [Column("stage")])["stage"]
    assert [(value, part["patients"]) for value, part in stages.items()] == [("1", None), ("2", None), ("10", None)]


def test_many_values_have_one_stratum_for_the_rare_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values a to f stand 6, 5, ... 1 times, and one row has none; of equally frequent ones, the first stays."""
    texts = [text for count, text in zip((6, 5, 4, 3, 2, 2), "abcdef", strict=True) for _ in range(count)]
    listed = [{"prediction": "1", "reference": "1", "columns": {"site": text}} for text in ["", *texts]]

    def sizes() -> dict[str, int]:
        return {value: part["samples"] for value, part in stratified(of(listed), {}, [Column("site")])["site"].items()}

    assert sizes() == {"a": 6, "b": 5, "c": 4, "d": 3, "e": 2, "f": 2, "unknown": 1}
    monkeypatch.setattr("mllm.engine.strata.MAX_STRATA", 6)
    assert len(sizes()) == 7
    monkeypatch.setattr("mllm.engine.strata.MAX_STRATA", 4)
    assert sizes() == {"a": 6, "b": 5, "c": 4, "other values": 7, "unknown": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gender", "the predictions have no 'gender'; evaluate the run again with --by gender; known are age, mod"),
        ("ages", "no 'ages'.*did you mean 'age'"),
        ("sex:1,2", "the column 'sex' has values that are not numbers"),
        ("age:40,18", "must be a column, or a column with increasing bounds: age:18,40,65"),
        ("age:old", "must be a column, or a column with increasing bounds"),
    ],
)
def test_columns_without_strata_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stratified(of(rows(4)), {}, [Column.parse(text)])
