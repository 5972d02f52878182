"""Folders that are never overwritten, and checkpoints that are whole or do not count."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mllm.engine.run_folder import (
    checkpoints,
    is_complete,
    mark_complete,
    newest_checkpoint,
    open_run_folder,
    point_latest,
    rotate,
)
from mllm.errors import ConfigError


def _checkpoint(folder, step, complete=True):
    path = folder / f"checkpoint-{step}"
    (path / "inner").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"x" * step)
    (path / "inner" / "state.json").write_text("{}")
    if complete:
        mark_complete(path)
    return path


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_runs_lie_under_their_config_and_latest_points_to_the_one_that_trained_last():
    first, _ = open_run_folder("a", None, resume=False)
    second, _ = open_run_folder("a", None, resume=False)
    assert first != second
    assert first.parent.parts == ("exp", "a")
    for folder in (first, second, first, first):
        point_latest(folder)
        assert os.readlink("exp/a/latest") == folder.name
    assert sorted(path.name for path in Path("exp/a").iterdir()) == sorted([first.name, second.name, "latest"])


@pytest.mark.parametrize("output_dir", ["taken/run", None])
def test_a_place_that_cannot_hold_a_run_is_said_in_words(tmp_path, output_dir):
    for name in ("taken", "exp"):
        (tmp_path / name).write_text("a file")
    with pytest.raises(ConfigError, match=r"cannot be written \(.+\): choose another place"):
        open_run_folder("a", output_dir, resume=False)


def test_a_run_that_another_process_trains_is_not_resumed_beside_it(tmp_path):
    folder, _ = open_run_folder("a", None, resume=False)
    point_latest(folder)
    _checkpoint(folder, 5)
    half = _checkpoint(folder, 10, complete=False)
    script = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    (folder / ".lock").unlink()  # this process holds the lock of the old one; the run begins anew elsewhere
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        other.stdout.readline()
        with pytest.raises(ConfigError, match="another process is training in .*: wait for it or end it"):
            open_run_folder("a", None, resume=True)
        assert half.is_dir(), "what the other one is writing stays"
    finally:
        other.kill()
        other.wait()
    assert open_run_folder("a", None, resume=True)[1].name == "checkpoint-5"
    assert open_run_folder("a", None, resume=True)[1].name == "checkpoint-5", "the same process may go on"


def test_resume_finds_the_newest_complete_checkpoint_and_removes_torsos(tmp_path):
    folder, _ = open_run_folder("a", None, resume=False)
    point_latest(folder)
    _checkpoint(folder, 5)
    _checkpoint(folder, 10)
    _checkpoint(folder, 15, complete=False)
    resumed, checkpoint = open_run_folder("a", None, resume=True)
    assert resumed == folder.resolve()
    assert checkpoint.name == "checkpoint-10"
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-5", "checkpoint-10"]


def test_a_shortened_or_missing_file_makes_a_checkpoint_a_torso(tmp_path):
    path = _checkpoint(tmp_path, 5)
    assert is_complete(path)
    (path / "model.safetensors").write_bytes(b"x")
    assert not is_complete(path)
    (path / "model.safetensors").unlink()
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("output_dir", [None, "mine"])
def test_nothing_to_resume_is_said(output_dir):
    with pytest.raises(ConfigError, match="--resume: (exp/a/latest|mine) has no complete checkpoint to continue from"):
        open_run_folder("a", output_dir, resume=True)


def test_an_explicit_folder_is_used_as_it_is_and_never_overwritten(tmp_path):
    folder, checkpoint = open_run_folder("a", "mine", resume=False)
    assert (folder.name, checkpoint) == ("mine", None)
    (folder / "notes.txt").write_text("precious")
    with pytest.raises(ConfigError, match="training_args.output_dir mine is not empty; pass --resume"):
        open_run_folder("a", "mine", resume=False)
    _checkpoint(folder, 3)
    assert open_run_folder("a", "mine", resume=True)[1].name == "checkpoint-3"
    assert (folder / "notes.txt").read_text() == "precious"


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4):
        _checkpoint(tmp_path, step)
    rotate(tmp_path, 2, keep=str(tmp_path / "checkpoint-1"))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-4"]
    rotate(tmp_path, None, keep=None)
    assert len(checkpoints(tmp_path)) == 2


def test_rotation_does_not_count_torsos(tmp_path):
    _checkpoint(tmp_path, 1)
    _checkpoint(tmp_path, 2, complete=False)
    rotate(tmp_path, 1, keep=None)
    assert newest_checkpoint(tmp_path).name == "checkpoint-1"
