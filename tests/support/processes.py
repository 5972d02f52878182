"""Runs of `finetune.py` and other commands in separate processes that do not import PyTorch again.

A server imports the packages of a run once; each run is a fork of it. Tests about the start or the exit of the
interpreter use `subprocess` instead.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from forked_runs import CHECKOUT, start_run

__all__ = ["CHECKOUT", "finetune", "finetune_in_processes", "run_in_processes"]
_LIMIT = 300  # seconds


def finetune(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `finetune.py` with `arguments` in the current directory, as a user starts it; one thread."""
    return _run(["finetune.py", *arguments], [environment])


def finetune_in_processes(
    processes: int, *arguments: str, prepare: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `finetune.py` with `arguments` in several processes; see `run_in_processes`."""
    return run_in_processes(processes, "finetune.py", *arguments, prepare=prepare)


def run_in_processes(
    processes: int, *command: str, prepare: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in several processes with the environment variables that torchrun sets.

    Each process calls `prepare` first.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return _run(command, ranks, prepare)


def _run(
    arguments: Sequence[str], environments: Sequence[Mapping[str, str]], prepare: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command once per environment at a time. The exit status is the first one that is not 0."""
    folder = Path.cwd()
    logs = [folder / f".process-{rank}" for rank in range(len(environments))]
    started = [
        start_run(arguments, folder, log, environment, prepare)
        for log, environment in zip(logs, environments, strict=True)
    ]
    for process in started:
        process.join(_LIMIT)
        if process.is_alive():
            process.kill()
            process.join()
    codes = [process.exitcode or 0 for process in started]
    output, errors = ("".join(Path(f"{log}.{name}").read_text() for log in logs) for name in ("out", "err"))
    for log in logs:
        for name in ("out", "err"):
            Path(f"{log}.{name}").unlink()
    return subprocess.CompletedProcess(arguments, next(filter(None, codes), 0), output, errors)
