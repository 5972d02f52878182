"""Figures of an evaluation as a table."""

from __future__ import annotations

from mllm.predict.evaluate import figures_table


def test_the_table_has_counts_and_fractions() -> None:
    lines = figures_table({"rec": {"accuracy": 0.87512, "samples": 1200}, "res": {"cIoU": float("nan")}}).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["rec", "accuracy", "0.8751"],
        ["rec", "samples", "1,200"],
        ["res", "cIoU", "nan"],
    ]
    assert len({len(line) for line in lines}) == 1
