"""Short runs of `scripts/kill.py` and `scripts/kill_evaluation.py`."""

from __future__ import annotations

import kill
import kill_evaluation


def test_killed_runs_end_like_uninterrupted_ones(capsys):
    assert kill.main(["--kills", "3", "--seed", "2", "--kinds", "text"]) == 0
    assert "0 did not" in capsys.readouterr().out


def test_killed_evaluations_end_like_uninterrupted_ones(capsys):
    assert kill_evaluation.main(["--kills", "1", "--rows", "12", "--seed", "1"]) == 0
    assert "0 did not" in capsys.readouterr().out
