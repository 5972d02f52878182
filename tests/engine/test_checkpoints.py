"""Tests of `mllm.engine.checkpoints`: completion marks, rotation, and checkpoints of other programs."""

import pytest
from checkpoint_files import write_checkpoint

from mllm.engine.checkpoints import (
    begin_checkpoint,
    checkpoints,
    is_complete,
    mark_complete,
    newest_checkpoint,
    remove_incomplete,
    rotate,
)


def test_a_shortened_or_missing_file_makes_a_checkpoint_incomplete(tmp_path):
    path = write_checkpoint(tmp_path, 5)
    assert is_complete(path) and not (path / ".writing").exists()
    (path / "model.safetensors").write_bytes(b"x")
    assert not is_complete(path)
    (path / "model.safetensors").unlink()
    assert newest_checkpoint(tmp_path) is None


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step)
    rotate(tmp_path, 2, best=str(tmp_path / "checkpoint-1"))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-4"]
    rotate(tmp_path, None, best=None)
    assert len(checkpoints(tmp_path)) == 2


def test_rotation_does_not_count_incomplete_checkpoints(tmp_path):
    write_checkpoint(tmp_path, 1)
    write_checkpoint(tmp_path, 2, complete=False)
    rotate(tmp_path, 1, best=None)
    assert newest_checkpoint(tmp_path).name == "checkpoint-1"


def test_a_killed_rotation_leaves_a_checkpoint_that_is_removed_later(tmp_path, monkeypatch):
    for step in (1, 2):
        write_checkpoint(tmp_path, step)
    with monkeypatch.context() as killed:
        killed.setattr("mllm.engine.checkpoints.shutil.rmtree", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rotate(tmp_path, 1, best=None)
    assert [is_complete(path) for path in checkpoints(tmp_path)] == [False, True]
    remove_incomplete(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]


def test_a_run_that_was_killed_after_the_completion_mark_leaves_no_mark_of_writing(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path, 3, complete=False)
    with monkeypatch.context() as killed:
        killed.setattr("pathlib.Path.unlink", lambda path, missing_ok: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mark_complete(path)
    assert is_complete(path) and (path / ".writing").exists()
    remove_incomplete(tmp_path)
    assert is_complete(path) and not (path / ".writing").exists()


def test_only_checkpoints_of_this_program_are_removed(tmp_path):
    other = tmp_path / "checkpoint-7"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"of another program")
    write_checkpoint(tmp_path, 8, complete=False)
    (write_checkpoint(tmp_path, 9) / "model.safetensors").write_bytes(b"damaged")
    write_checkpoint(tmp_path, 10)
    remove_incomplete(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-7", "checkpoint-10"]
    assert (other / "model.safetensors").read_bytes() == b"of another program"


def test_a_checkpoint_of_another_program_is_renamed_before_it_would_be_overwritten(tmp_path):
    for content in ("first", "second"):
        path = tmp_path / "checkpoint-7"
        path.mkdir()
        (path / "model.safetensors").write_text(content)
        begin_checkpoint(path)
        assert [file.name for file in path.iterdir()] == [".writing"]
        mark_complete(path)
        assert is_complete(path)
        path.rename(tmp_path / content)
    contents = [(tmp_path / f"checkpoint-7.other{number}" / "model.safetensors").read_text() for number in (1, 2)]
    assert contents == ["first", "second"]
    assert checkpoints(tmp_path) == []
