"""Guarded process: calls of functions whose libraries may abort the process, never return, or take all memory.

Readers decode in it all files whose cost may be large; `readers/__init__.py` lists the limits.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from typing import Any

from mllm.dataset.readers import notices
from mllm.dataset.readers.pixel_limit import limited_pixels, pixel_limit
from mllm.errors import UserError
from mllm.literal_text import literal_text

SECONDS = 30.0
"""Limit of the time without a result or a call of `report_progress`, for calls that read no volume."""
BYTES_PER_SECOND = 10 << 20
"""Speed of the slowest supported disk, a network share: a volume has one second more for each of these bytes."""
_BYTES = 8 << 30
"""Limit of the address space of the guarded process."""
_RESULT_BYTES = 4 << 30
"""Limit of the size of all results of a call."""
_START_SECONDS = 120.0
_PROGRESS_SECONDS = 0.5
"""Shortest time between two messages of `report_progress`: a message takes longer than the packet of a small video."""
_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError),
)
_processes: dict[int, GuardedProcess] = {}
_to_caller: Connection | None = None
"""Pipe to the caller, in a guarded process."""
_last_progress = 0.0
"""Time of the last message of `report_progress`, in a guarded process."""


class GuardedError(Exception):
    """End of the guarded process, exceeded time, or exception of the function. `reason` has no value of a file."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class GuardedProcess:
    """Process that calls functions one after another. It starts at the first call, and again if it has ended."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def call(self, function: str, *arguments: Any, size: int = 0) -> list[Any]:
        """Return the results that a generator function yields. Its warnings about files are logged in this process.

        Args:
            function: Module and name, `package.module:function`.
            arguments: Arguments that can be pickled.
            size: Size in bytes of the volume that the function reads as a whole, by which its time is extended.

        Raises:
            UserError: The function raised it.
            GuardedError: The process ended, a limit of time or size was exceeded, or the function raised another error.
        """
        with self._lock:
            pipe = self._pipe or self._start()
            try:
                pipe.send((function, arguments, os.getcwd(), pixel_limit()))
                return self._results(pipe, self._seconds + size / BYTES_PER_SECOND)
            except (EOFError, OSError) as error:
                self.stop()
                raise GuardedError("the decoder crashed") from error

    def stop(self) -> None:
        """End the process."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._pipe = self._process = None

    def _results(self, pipe: Connection, seconds: float) -> list[Any]:
        results: list[Any] = []
        size = 0
        while True:
            kind, value, length = self._receive(pipe, seconds)
            size += length
            if size > _RESULT_BYTES:
                self.stop()
                raise GuardedError(f"its selected images have more than {_RESULT_BYTES >> 30} GiB: select fewer")
            if kind == "end":
                return results
            if kind == "progress":
                continue
            if kind == "notice":
                notices.warn_once(*value)
            elif kind == "refused":
                raise value
            elif kind == "error":
                raise GuardedError(value)
            else:
                results.append(value)

    def _start(self) -> Connection:
        here, there = Pipe()
        # C libraries print values of the file to the standard streams.
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve({there.fileno()}, {_BYTES})"],
            pass_fds=[there.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        there.close()
        self._pipe = here
        try:
            self._receive(here, _START_SECONDS)
        except (EOFError, OSError) as error:
            self.stop()
            raise GuardedError("the process of the decoder cannot be started") from error
        return here

    def _receive(self, pipe: Connection, seconds: float) -> tuple[str, Any, int]:
        """Return kind, value and size in bytes of the next message."""
        if not pipe.poll(seconds):
            self.stop()
            raise GuardedError(f"decoding takes longer than {seconds:.3g} s")
        message = pipe.recv_bytes()
        kind, value = ForkingPickler.loads(message)
        return kind, value, len(message)


def call_guarded(function: str, *arguments: Any, size: int = 0) -> list[Any]:
    """Call a generator function in the guarded process of this process; see `GuardedProcess.call`."""
    # A forked worker of a data loader has a guarded process of its own.
    process = _processes.get(os.getpid())
    if process is None:
        process = _processes[os.getpid()] = GuardedProcess(SECONDS)
        atexit.register(process.stop)
    return process.call(function, *arguments, size=size)


def report_progress() -> None:
    """Start the time limit again, if this process is guarded.

    Functions call it after each frame of a video and each file of a series, whose total time has no limit: their number
    is limited by the size of the files.
    """
    global _last_progress
    if _to_caller is None:
        return
    now = time.monotonic()
    if now - _last_progress >= _PROGRESS_SECONDS:
        _last_progress = now
        _to_caller.send(("progress", None))


def is_installed(package: str) -> bool:
    """Return True for an installed package, without importing it into this process."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # an import that is refused: `sys.modules[package] = None`
        return False


def serve(file: int, size: int) -> None:
    """Answer calls until the other end of the pipe is closed. This is the program of the guarded process.

    Args:
        file: Descriptor of the pipe.
        size: Limit of the address space in bytes.
    """
    import resource

    global _to_caller
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard < 0 else min(size, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe = _to_caller = Connection(file)
    notices.receivers.append(lambda *notice: pipe.send(("notice", notice)))
    pipe.send(("ready", None))
    while True:
        try:
            name, arguments, folder, pixels = pipe.recv()
        except EOFError:
            return
        module, function = name.split(":")
        try:
            os.chdir(folder)
            with limited_pixels(pixels):
                for result in vars(importlib.import_module(module))[function](*arguments):
                    pipe.send(("result", result))
        except UserError as error:
            error.reason = error.reason or literal_text(error)  # its traceback does not leave this process
            pipe.send(("refused", error))
        except MemoryError:
            pipe.send(("error", f"decoding takes more than {size >> 30} GiB of memory"))
        except _ERRORS as error:
            # Messages of decoders contain values of the file, so only the type leaves this process. Other exceptions
            # end it.
            pipe.send(("error", type(error).__name__))
        else:
            pipe.send(("end", None))
