"""Runs of `finetune.py` in processes of their own that do not import PyTorch again.

A server imports the packages of a run once; each run is a fork of it. A start from nothing costs ten seconds of a
core, a fork costs none. Tests about the start or the exit of the interpreter use `subprocess` instead.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

CHECKOUT = Path(__file__).resolve().parents[2]
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT)}  # of the server: before a test changes it
_IMPORTED = ["mllm.run.steps", "transformers.models.gemma3", "transformers.models.gemma3n"]
_LIMIT = 300  # seconds


def finetune(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `finetune.py` with `arguments` in the current directory, as a user starts it; one thread."""
    return _run(["finetune.py", *arguments], [environment])


def finetune_in_processes(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `finetune.py` with `arguments` in several processes with the environment variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return _run(["finetune.py", *arguments], ranks)


def _run(arguments: Sequence[str], environments: Sequence[Mapping[str, str]]) -> subprocess.CompletedProcess[str]:
    """Run the command once per environment at a time. The exit status is the first one that is not 0."""
    context = multiprocessing.get_context("forkserver")
    with patch.dict(os.environ, {**_ENVIRONMENT, "OMP_NUM_THREADS": "1"}, clear=True):
        forkserver.set_forkserver_preload(_IMPORTED)
        forkserver.ensure_running()
    folder = Path.cwd()
    logs = [folder / f".process-{rank}" for rank in range(len(environments))]
    started = []
    for log, environment in zip(logs, environments, strict=True):
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        process = context.Process(target=_main, args=(list(arguments), variables, str(folder), str(log)))
        process.start()
        started.append(process)
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


def _main(arguments: list[str], variables: dict[str, str], folder: str, log: str) -> None:
    """Replace the arguments, variables, directory and streams of the forked process and run the command."""
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = arguments
    sys.path.insert(0, folder)

    from mllm.pipeline.command import run_command
    from mllm.pipeline.finetune import main

    code = run_command(main)
    # A thread of the process group that outlives the training may crash the process when it exits.
    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]  # none but on Linux
    assert not [name for name in threads if "gloo" in name], threads
    sys.exit(code)
