"""Checkpoint folders for tests, without a model."""

from pathlib import Path

from mllm.engine.checkpoints import begin_checkpoint, mark_complete


def write_checkpoint(folder: Path, step: int, complete: bool = True) -> Path:
    """Write `checkpoint-STEP` with two files, as a run does, and return it."""
    path = folder / f"checkpoint-{step}"
    begin_checkpoint(path)
    (path / "inner").mkdir()
    (path / "model.safetensors").write_bytes(b"x" * step)
    (path / "inner" / "state.json").write_text("{}")
    if complete:
        mark_complete(path)
    return path
