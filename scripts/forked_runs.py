"""Runs of commands such as `finetune.py` in forks of a server that has imported PyTorch, for tests and for `kill.py`.

The imports of a new process take over six seconds of a core; a fork has them already.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest.mock import patch

CHECKOUT = Path(__file__).resolve().parents[1]
KEEPS_GROUP = "MLLM_KEEPS_PROCESS_GROUP"
"""Variable that a function `prepare` sets if the process group cannot be destroyed: FSDP and ZeRO-3 keep it in
caches. Such a process ends without the exit of the interpreter."""
_ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'scripts'}", "OMP_NUM_THREADS": "1"}
"""Environment of the server, without changes by tests."""
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
"""Audit events of Python that change a folder. `open` is added if it writes."""


def start_run(
    arguments: Sequence[str],
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    prepare: Callable[[], None] | None = None,
) -> ForkServerProcess:
    """Start the command in `folder` and return its process.

    Args:
        arguments: File name of the command in `mllm/pipeline/`, and its arguments.
        folder: Current directory of the process.
        log: Path without suffix of the files for both output streams, which get the suffixes `.out` and `.err`.
        environment: Additional environment variables.
        prepare: Function that the process calls before the command.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), **environment}
    main = (list(arguments), variables, str(folder), str(log), prepare)
    process = server().Process(target=_main, args=main)
    process.start()
    return process


def server() -> ForkServerContext:
    """Return the context of processes that are forks of the server, and start the server if it does not run."""
    with patch.dict(os.environ, _ENVIRONMENT, clear=True):
        forkserver.set_forkserver_preload(["forked_packages"])
        forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def kill_at_operation(number: int, delay: float) -> None:
    """Kill this process with SIGKILL just before its n-th operation that changes its current directory.

    Args:
        number: Number of the operation, from 1.
        delay: Seconds after the beginning of the operation; 0: before it.
    """
    count = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if _changed_path(event, args) is not None:
            count += 1
            if count == number and delay:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            elif count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def record_operations(path: str) -> None:
    """Write the path of each operation that changes the current directory to a file, one per line."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, args: tuple[object, ...]) -> None:
        if (changed := _changed_path(event, args)) is not None:
            os.write(file, f"{changed}\n".encode())

    sys.addaudithook(hook)


def limit_file_size(size: int) -> None:
    """Let a write fail that would make a file larger than `size` bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _changed_path(event: str, args: tuple[object, ...]) -> Path | None:
    """Return the path, relative to the current directory, that an audit event changes there; None if it does not."""
    if event != "open" and event not in _CHANGES:
        return None
    path = args[0]
    if event == "open":
        flags = args[2]
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
            return None
    if not isinstance(path, (str, Path)) or Path.cwd() not in Path(path).absolute().parents:
        return None
    return Path(path).absolute().relative_to(Path.cwd())


def _main(
    arguments: list[str], variables: dict[str, str], folder: str, log: str, prepare: Callable[[], None] | None
) -> None:
    """Replace the arguments, variables, directory and streams of the forked process and run the command."""
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = arguments
    sys.path.insert(0, folder)
    # Workers of loaders start as in a command. The inherited method would import PyTorch again in every worker.
    multiprocessing.set_start_method(None, force=True)

    from mllm.pipeline.command import run_command

    main = import_module(f"mllm.pipeline.{Path(arguments[0]).stem}").main
    if prepare is not None:
        prepare()
    code = run_command(main)
    if KEEPS_GROUP in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    # A thread of the process group that is still running after the training may crash the process when it exits.
    threads = _names_of_threads()
    assert code != 0 or not [name for name in threads if "gloo" in name], threads
    sys.exit(code)


def _names_of_threads() -> list[str]:
    """Return the names of the threads of this process; none but on Linux."""
    names = []
    for file in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # the thread ended after its folder was listed
            names.append(file.read_text().strip())
    return names
