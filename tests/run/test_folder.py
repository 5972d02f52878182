"""Tests of `mllm.run.folder`: new run folders, explicit ones, and resumption."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import write_checkpoint

from mllm.engine.checkpoints import checkpoints
from mllm.errors import ConfigError
from mllm.run.folder import open_run_folder, point_latest, removed_if_refused


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_runs_of_a_config_have_one_parent_and_latest_points_to_the_one_that_trained_last():
    first, _ = open_run_folder("a", None, resume=False)
    second, _ = open_run_folder("a", None, resume=False)
    assert first != second
    assert first.parent.parts == ("exp", "a")
    for folder in (first, second, first, first):
        point_latest(folder)
        assert os.readlink("exp/a/latest") == folder.name
    assert sorted(path.name for path in Path("exp/a").iterdir()) == sorted([first.name, second.name, "latest"])


@pytest.mark.parametrize("output_dir", ["taken/run", None])
def test_a_folder_that_cannot_be_created_is_refused(tmp_path, output_dir):
    for name in ("taken", "exp"):
        (tmp_path / name).write_text("a file")
    with pytest.raises(ConfigError, match=r"cannot be written \(.+\): choose another path"):
        open_run_folder("a", output_dir, resume=False)


def test_a_run_that_another_process_trains_is_not_resumed(tmp_path):
    folder, _ = open_run_folder("a", None, resume=False)
    point_latest(folder)
    write_checkpoint(folder, 5)
    half = write_checkpoint(folder, 10, complete=False)
    script = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    (folder / ".lock").unlink()  # this process holds the lock of the deleted file; the other process locks a new one
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        other.stdout.readline()
        with pytest.raises(ConfigError, match="another process is training in .*: wait for it or end it"):
            open_run_folder("a", None, resume=True)
        assert half.is_dir(), "the checkpoint that the other process writes is untouched"
    finally:
        other.kill()
        other.wait()
    assert open_run_folder("a", None, resume=True)[1].name == "checkpoint-5"
    assert open_run_folder("a", None, resume=True)[1].name == "checkpoint-5", "the same process may continue"


def test_resume_continues_from_the_newest_complete_checkpoint_and_removes_incomplete_ones():
    folder, _ = open_run_folder("a", None, resume=False)
    point_latest(folder)
    write_checkpoint(folder, 5)
    write_checkpoint(folder, 10)
    write_checkpoint(folder, 15, complete=False)
    resumed, checkpoint = open_run_folder("a", None, resume=True)
    assert resumed == folder.resolve()
    assert checkpoint.name == "checkpoint-10"
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-5", "checkpoint-10"]


def test_resume_keeps_a_checkpoint_of_another_program():
    folder, _ = open_run_folder("a", "mine", resume=False)
    write_checkpoint(folder, 5)
    (folder / "checkpoint-15").mkdir()
    (folder / "checkpoint-15" / "model.safetensors").write_bytes(b"of another program")
    assert open_run_folder("a", "mine", resume=True)[1].name == "checkpoint-5"
    assert (folder / "checkpoint-15" / "model.safetensors").read_bytes() == b"of another program"


@pytest.mark.parametrize("output_dir", [None, "mine"])
def test_a_run_without_a_checkpoint_is_not_resumed(output_dir):
    with pytest.raises(ConfigError, match="--resume: (exp/a/latest|mine) has no complete checkpoint to continue from"):
        open_run_folder("a", output_dir, resume=True)


def test_an_explicit_folder_is_used_as_it_is_and_never_overwritten():
    folder, checkpoint = open_run_folder("a", "mine", resume=False)
    assert (folder.name, checkpoint) == ("mine", None)
    (folder / "notes.txt").write_text("precious")
    with pytest.raises(
        ConfigError, match="output_dir mine is not empty; it contains no checkpoint to resume, so choose"
    ):
        open_run_folder("a", "mine", resume=False)
    write_checkpoint(folder, 3)
    with pytest.raises(ConfigError, match="output_dir mine is not empty; pass --resume to continue it, or choose"):
        open_run_folder("a", "mine", resume=False)
    assert open_run_folder("a", "mine", resume=True)[1].name == "checkpoint-3"
    assert (folder / "notes.txt").read_text() == "precious"


def test_an_explicit_folder_in_which_a_start_failed_can_be_started_again():
    folder, _ = open_run_folder("a", "mine", resume=False)
    for name in ("config.py", "environment.json", "data_summary.json", "first_batch.md.tmp-0123abcd"):
        (folder / name).write_text("of the failed start")
    assert open_run_folder("a", "mine", resume=False) == (folder, None)
    assert not list(folder.glob("*.tmp-*"))
    (folder / "training_log.json").write_text("{}")
    with pytest.raises(ConfigError, match="output_dir mine is not empty"):
        open_run_folder("a", "mine", resume=False)


def test_a_run_that_is_refused_before_the_training_leaves_no_folder():
    def refuse(is_new, *files):
        folder, _ = open_run_folder("a", None, resume=False)
        for name in files:
            (folder / name).write_text("of the failed start")
        with pytest.raises(ConfigError, match="num2words"), removed_if_refused(folder, is_new):
            raise ConfigError("the processor needs the package num2words")
        return folder

    refuse(True, "config.py", "environment.json")
    assert not Path("exp/a").exists()
    for is_new, name in ((False, "config.py"), (True, "training_log.json")):
        assert (refuse(is_new, name) / name).is_file()


def test_a_file_as_output_dir_is_refused_as_a_file():
    Path("mine").write_text("of the user")
    with pytest.raises(ConfigError, match="output_dir mine is a file: choose another folder"):
        open_run_folder("a", "mine", resume=False)


@pytest.mark.parametrize("name", ["config.py", "environment.json"])
def test_a_folder_with_files_of_the_user_is_refused_whatever_their_names(name):
    Path("mine").mkdir()
    (Path("mine") / name).write_text("of the user")
    with pytest.raises(ConfigError, match="output_dir mine is not empty"):
        open_run_folder("a", "mine", resume=False)
