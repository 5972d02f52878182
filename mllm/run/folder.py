"""Creation, locking and resumption of run folders."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState

from mllm.engine.checkpoints import newest_checkpoint, remove_incomplete
from mllm.errors import ConfigError, UserError
from mllm.files import explained_write, final_name, remove_temporary
from mllm.run_files import (
    CONFIG,
    DATA_SUMMARY,
    ENVIRONMENT,
    ENVIRONMENT_TABLE,
    EPOCHS,
    FIRST_BATCH,
    INPUTS,
    LATEST,
    LOCK,
    MEASURES_PLOT,
    PLAN,
    TENSORBOARD,
    UNFINISHED,
    runs_of,
)

STARTED = {
    *(LOCK, CONFIG, ENVIRONMENT, ENVIRONMENT_TABLE, DATA_SUMMARY, MEASURES_PLOT, INPUTS),
    *(FIRST_BATCH, PLAN, TENSORBOARD),
}
"""Files that a run writes before its first log entry or checkpoint."""


def open_run_folder(name: str, output_dir: str | None, resume: bool) -> tuple[Path, Path | None]:
    """Return the locked folder of a run and, if it resumes, the newest complete checkpoint in it.

    The folder is `output_dir`, or `exp/<name>/<YYYYmmdd_HHMMSS>`; `resume` then continues `exp/<name>/latest`.

    Raises:
        ConfigError: There is no checkpoint to resume, `output_dir` is not empty, or another process trains in it. A
            folder that contains only files of a failed start counts as empty.
    """
    if resume:
        return _resumed(Path(output_dir) if output_dir else runs_of(name) / LATEST)
    folder = Path(output_dir) if output_dir else _new_folder(runs_of(name))
    if output_dir:
        _refuse_nonempty(folder)
        with explained_write(folder):
            folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    remove_temporary(folder)
    return folder, None


@contextmanager
def removed_if_refused(folder: Path, is_new: bool) -> Iterator[None]:
    """Remove a run folder if the block raises an error for users before anything was trained.

    Args:
        folder: The run folder.
        is_new: True if this run created it. The folder of a resumed run, and one that the user named, stay.
    """
    try:
        yield
    except UserError:
        if is_new and PartialState().is_main_process and {path.name for path in folder.iterdir()} <= STARTED:
            shutil.rmtree(folder)
            if not any(folder.parent.iterdir()):
                folder.parent.rmdir()
        raise


def _resumed(folder: Path) -> tuple[Path, Path]:
    """Return the locked folder of a run that continues and its newest complete checkpoint."""
    checkpoint = newest_checkpoint(folder) if folder.is_dir() else None
    if checkpoint is None:
        raise ConfigError(
            f"--resume: {folder} has no complete checkpoint to continue from; "
            "start without --resume, or name the run's folder in training_args.output_dir"
        )
    folder = folder.resolve() if folder.is_symlink() else folder
    _lock(folder)
    remove_incomplete(folder)
    for parent in (folder, folder / EPOCHS):
        if parent.is_dir():
            remove_temporary(parent)
    return folder, folder / checkpoint.name


def _refuse_nonempty(folder: Path) -> None:
    """Raise `ConfigError` if a folder contains more than the files of a start that failed before the training."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"training_args.output_dir {folder} is a file: choose another folder")
    names = {final_name(path.name) for path in folder.iterdir()}
    if not names or (LOCK in names and {name for name in names if UNFINISHED not in name} <= STARTED):
        return
    fix = "pass --resume to continue it, or choose another folder"
    if newest_checkpoint(folder) is None:
        fix = "it contains no checkpoint to resume, so choose another folder"
    raise ConfigError(f"training_args.output_dir {folder} is not empty; {fix}")


def _lock(folder: Path) -> None:
    """Lock a run folder until this process ends; raise `ConfigError` if another process holds the lock.

    A record lock ends with its process and is not inherited, so the workers of a killed run do not hold it.
    """
    if sys.platform == "win32":
        return  # it has no record locks
    import fcntl

    with explained_write(folder / LOCK):
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)  # never closed: that would drop the lock
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return  # a file system without locks
        raise ConfigError(
            f"another process is training in {folder}: wait for it or end it, or choose another folder with "
            "training_args.output_dir"
        ) from error


def _new_folder(runs: Path) -> Path:
    """Create a folder named after the current second."""
    while True:
        folder = runs / time.strftime("%Y%m%d_%H%M%S")
        with explained_write(folder):
            runs.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                time.sleep(0.2)


def point_latest(folder: Path) -> None:
    """Point the symbolic link `latest` beside a run folder to it.

    Call this when training begins, because a failed start cannot be resumed.
    """
    latest = folder.with_name(LATEST)
    link = folder.with_name(f"{LATEST}.{os.getpid()}")
    with explained_write(latest):
        link.symlink_to(folder.name)
        os.replace(link, latest)
