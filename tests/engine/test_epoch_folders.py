"""Tests of `mllm.engine.epoch_folders`."""

import math
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from mllm.engine.epoch_folders import EpochFolders


@pytest.mark.parametrize("epochs", [2])
def test_every_epoch_has_one_folder_after_a_resume(tmp_path: Path, epochs: int):
    written = []

    def write(folder: Path) -> None:
        folder.mkdir()
        written.append(folder.name)

    args, control = TrainingArguments(str(tmp_path), report_to=[]), TrainerControl()
    for state in (TrainerState(epoch=1.0), TrainerState(epoch=1.0), TrainerState(epoch=2.0)):
        EpochFolders(write).on_epoch_end(args, state, control)  # the second belongs to a resumed run
    assert [name[:9] for name in written] == ["epoch_01_", "epoch_02_"]
    assert all(math.isfinite(float(name[9:17])) for name in written)


def test_an_incomplete_epoch_has_no_folder_until_it_is_completed(tmp_path: Path):
    written: list[str] = []
    args, control = TrainingArguments(str(tmp_path), report_to=[]), TrainerControl()
    for epoch in (0.75, 1.0, 1.6, 3 * (2 / 3)):
        EpochFolders(lambda folder: written.append(folder.name[:8])).on_epoch_end(
            args, TrainerState(epoch=epoch), control
        )
    assert written == ["epoch_01", "epoch_02"]


def test_another_process_writes_nothing(tmp_path: Path):
    state = TrainerState(epoch=1.0, is_world_process_zero=False)
    EpochFolders(lambda folder: pytest.fail("written")).on_epoch_end(
        TrainingArguments(str(tmp_path), report_to=[]), state, TrainerControl()
    )
    assert list(tmp_path.iterdir()) == []
