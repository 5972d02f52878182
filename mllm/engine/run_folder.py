"""Where a run keeps what it makes, and which of its checkpoints are whole."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path

from mllm.errors import ConfigError
from mllm.files import place_for, write_json

logger = logging.getLogger(__name__)

COMPLETE = "complete.json"
"""Written last into a checkpoint: its files with their sizes. Without it a checkpoint is a torso."""

LOCK = ".lock"
"""Locked by the process that trains in a run's folder."""


def open_run_folder(name: str, output_dir: str | None, resume: bool) -> tuple[Path, Path | None]:
    """The folder of a run and, where it resumes, the newest complete checkpoint in it.

    `exp/<name>/<YYYYmmdd_HHMMSS>`, to which `point_latest` may lead, or `output_dir` as it is. Raises `ConfigError`
    where there is nothing to resume, where an explicit folder already holds something, or where another process trains.
    """
    runs = Path("exp") / name
    if resume:
        folder = Path(output_dir) if output_dir else runs / "latest"
        checkpoint = newest_checkpoint(folder) if folder.is_dir() else None
        if checkpoint is None:
            raise ConfigError(
                f"--resume: {folder} has no complete checkpoint to continue from; "
                "start without --resume, or name the run's folder in training_args.output_dir"
            )
        folder = folder.resolve() if folder.is_symlink() else folder
        _claim(folder)
        _remove_torsos(folder)
        return folder, folder / checkpoint.name
    if output_dir:
        folder = Path(output_dir)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"training_args.output_dir {folder} is not empty; "
                "pass --resume to continue it, or choose another folder"
            )
        with place_for(folder):
            folder.mkdir(parents=True, exist_ok=True)
        _claim(folder)
        return folder, None
    folder = _new_folder(runs)
    _claim(folder)
    return folder, None


def _claim(folder: Path) -> None:
    """Keeps a run's folder to this process until it ends, however it does; raises where another one writes there.

    A record lock is dropped with its process and unknown to its children: workers that outlive a killed run hold none.
    """
    if sys.platform == "win32":
        return  # it has no record locks
    import fcntl

    with place_for(folder / LOCK):
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
    """A new folder named after the present second."""
    while True:
        folder = runs / time.strftime("%Y%m%d_%H%M%S")
        with place_for(folder):
            runs.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                time.sleep(0.2)


def point_latest(folder: Path) -> None:
    """Lets `latest` beside a run's folder lead to it: once it trains, for a start that fails is no run to continue."""
    latest = folder.with_name("latest")
    link = folder.with_name(f"latest.{os.getpid()}")
    with place_for(latest):
        link.symlink_to(folder.name)
        os.replace(link, latest)


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step in a run's folder."""
    found = [path for path in checkpoints(folder) if is_complete(path)]
    return found[-1] if found else None


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, complete or not, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: every file is there in the size that was noted last."""
    try:
        files: dict[str, int] = json.loads((checkpoint / COMPLETE).read_text())["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def mark_complete(checkpoint: Path) -> None:
    """Notes a checkpoint's files and sizes once they are on the disk."""
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != COMPLETE:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            files[str(path.relative_to(checkpoint))] = path.stat().st_size
    write_json(checkpoint / COMPLETE, {"files": files})


def rotate(folder: Path, limit: int | None, keep: str | None) -> None:
    """Removes the oldest complete checkpoints beyond `limit`, never the newest, never `keep` (the best one's path)."""
    if not limit or limit < 1:
        return
    complete = [path for path in checkpoints(folder) if is_complete(path)]
    best = Path(keep).name if keep else None
    removable = [path for path in complete[:-1] if path.name != best]
    for path in removable[: max(0, len(complete) - limit)]:
        (path / COMPLETE).unlink()
        shutil.rmtree(path)


def _remove_torsos(folder: Path) -> None:
    """Removes what a killed run left half written."""
    for path in checkpoints(folder):
        if not is_complete(path):
            logger.info("removing %s, which was not written to its end", path)
            shutil.rmtree(path)
