"""Common samples of runs against tables of all rows."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

from mllm.engine.predictions import Predictions, read_predictions
from mllm.report.common_samples import common_samples


def written(path: Path, sources: list[str]) -> Predictions:
    """Write rows whose predictions are their numbers, and read them."""
    rows = [{"source": name, "reference": "yes", "prediction": str(i)} for i, name in enumerate(sources)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_predictions(path)


def test_rows_are_joined_by_source_and_occurrence(tmp_path: Path) -> None:
    """Sources recur several times in each run, in another order."""
    draws = random.Random(0)
    sources = [[f"rows.jsonl, line {draws.randrange(60)}" for _ in range(150)] for _ in range(3)]
    runs = [written(tmp_path / f"{number}.jsonl", names) for number, names in enumerate(sources)]
    tables = []
    for names in sources:
        seen: Counter[str] = Counter()
        table: dict[tuple[str, int], str] = {}
        for number, name in enumerate(names):
            table[name, seen[name]] = str(number)
            seen[name] += 1
        tables.append(table)
    expected = [[table[key] for table in tables] for key in tables[0] if all(key in table for table in tables)]
    samples = common_samples([tmp_path] * 3, runs)
    for _ in range(2):
        assert [[row["prediction"] for row in rows] for rows in samples] == expected
    assert 50 < len(expected) < 150


def test_rows_of_a_file_are_a_sequence(tmp_path: Path) -> None:
    """A line separator of Unicode inside a text does not end a line."""
    rows = written(tmp_path / "rows.jsonl", [*"abc", "d\u2028e"])
    assert len(rows) == 4 and rows[-1]["source"] == "d\u2028e"
    assert [row["source"] for row in rows[1:3]] == ["b", "c"]
    assert [row["source"] for row in rows.chosen([2, 0])] == ["c", "a"]
