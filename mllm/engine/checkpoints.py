"""Completion marks and rotation of the checkpoints of a run.

A checkpoint contains `.writing` while it is written, and `complete.json` afterwards. A folder with neither was not
written by this program: it is never loaded and never deleted.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

from mllm.files import write_json
from mllm.run_files import CHECKPOINT, COMPLETE, WRITING, checkpoint_step

logger = logging.getLogger(__name__)


def checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoint folders in a run folder, complete or not, by number of updates."""
    steps = {path: step for path in folder.glob(f"{CHECKPOINT}*") if (step := checkpoint_step(path)) is not None}
    return sorted(steps, key=lambda path: steps[path])


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the complete checkpoint with the most updates in a run folder; None without one."""
    complete = [path for path in checkpoints(folder) if is_complete(path)]
    return complete[-1] if complete else None


def is_complete(checkpoint: Path) -> bool:
    """Return True if the checkpoint has its completion mark and every file has the size listed there."""
    try:
        files: dict[str, int] = json.loads((checkpoint / COMPLETE).read_text())["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def begin_checkpoint(checkpoint: Path) -> None:
    """Create the folder of a checkpoint that is about to be written, and mark it as incomplete.

    A folder of the same name that this program did not write is renamed.
    """
    if checkpoint.exists() and not _is_ours(checkpoint):
        number = 1
        while (renamed := checkpoint.with_name(f"{checkpoint.name}.other{number}")).exists():
            number += 1
        checkpoint.rename(renamed)
        logger.warning("%s was not written by this program: renamed to %s", checkpoint, renamed.name)
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / WRITING).touch()


def mark_complete(checkpoint: Path) -> None:
    """Flush the files of a checkpoint to the disk and write the completion mark with their sizes."""
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name not in (COMPLETE, WRITING):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            files[str(path.relative_to(checkpoint))] = path.stat().st_size
    write_json(checkpoint / COMPLETE, {"files": files})
    (checkpoint / WRITING).unlink(missing_ok=True)


def rotate(folder: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest complete checkpoints beyond `limit`, but never the newest and the best.

    Args:
        folder: The run folder.
        limit: Number of complete checkpoints that may remain; None or 0: all.
        best: Path of the best checkpoint; None: unknown.
    """
    if not limit or limit < 1:
        return
    complete = [path for path in checkpoints(folder) if is_complete(path)]
    best_name = Path(best).name if best else None
    removable = [path for path in complete[:-1] if path.name != best_name]
    for path in removable[: max(0, len(complete) - limit)]:
        (path / WRITING).touch()  # a killed removal leaves an incomplete checkpoint of this program
        (path / COMPLETE).unlink()
        shutil.rmtree(path)


def remove_incomplete(folder: Path) -> None:
    """Remove the incomplete checkpoints that a killed run left in its folder, and the marks of complete ones."""
    for path in checkpoints(folder):
        if is_complete(path):
            (path / WRITING).unlink(missing_ok=True)  # the run was killed after it had written the completion mark
            continue
        if _is_ours(path):
            logger.info("removing %s, which is incomplete", path)
            shutil.rmtree(path)
        else:
            logger.info("%s has no completion mark, so it is neither used nor removed", path)


def _is_ours(checkpoint: Path) -> bool:
    """Return True if this program wrote the checkpoint or began to write it."""
    return (checkpoint / WRITING).exists() or (checkpoint / COMPLETE).exists()
