"""Check of `CASES.md`: every test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = [line for line in (ROOT / "tests" / "CASES.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]


def test_every_case_names_a_test_that_exists():
    missing = []
    for row in ROWS[2:]:
        names = re.findall(r"`(tests/\S+\.py)::(\w+)", row.split("|")[3])
        assert names, row
        for file, test in names:
            path = ROOT / file
            if not path.is_file() or not re.search(rf"^ *def {test}\(", path.read_text(encoding="utf-8"), re.MULTILINE):
                missing.append(f"{file}::{test}")
    assert not missing
    assert len(ROWS) > 30
