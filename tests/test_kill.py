"""A short run of `scripts/kill.py`."""

from __future__ import annotations

import kill


def test_killed_runs_end_like_uninterrupted_ones(capsys):
    assert kill.main(["--kills", "3", "--seed", "2", "--kinds", "text"]) == 0
    assert "0 did not" in capsys.readouterr().out
