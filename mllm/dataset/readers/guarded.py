"""Guarded process: calls of functions whose libraries may abort the process, never return, or take all memory."""

from __future__ import annotations

import atexit
import importlib
import os
import subprocess
import sys
import threading
from multiprocessing.connection import Connection, Pipe
from typing import Any

SECONDS = 30.0
"""Limit of the time of one result."""
_BYTES = 8 << 30
"""Limit of the address space of the guarded process."""
_START_SECONDS = 120.0
_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError),
)
_processes: dict[int, GuardedProcess] = {}


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

    def call(self, function: str, *arguments: Any) -> list[Any]:
        """Return the results that a generator function yields.

        Args:
            function: Module and name, `package.module:function`.
            arguments: Arguments that can be pickled.

        Raises:
            GuardedError: The process ended, a result took longer than the limit, or the function raised.
        """
        with self._lock:
            pipe = self._pipe or self._start()
            try:
                pipe.send((function, arguments))
                results: list[Any] = []
                while True:
                    kind, value = self._receive(pipe, self._seconds)
                    if kind == "end":
                        return results
                    if kind == "error":
                        raise GuardedError(value)
                    results.append(value)
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

    def _start(self) -> Connection:
        here, there = Pipe()
        # C libraries print values of the file to the standard streams.
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve({there.fileno()})"],
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

    def _receive(self, pipe: Connection, seconds: float) -> tuple[str, Any]:
        if not pipe.poll(seconds):
            self.stop()
            raise GuardedError(f"decoding takes longer than {seconds:g} s")
        kind, value = pipe.recv()
        return kind, value


def call_guarded(function: str, *arguments: Any) -> list[Any]:
    """Call a generator function in the guarded process of this process; see `GuardedProcess.call`."""
    # A forked worker of a data loader has a guarded process of its own.
    process = _processes.get(os.getpid())
    if process is None:
        process = _processes[os.getpid()] = GuardedProcess(SECONDS)
        atexit.register(process.stop)
    return process.call(function, *arguments)


def serve(file: int) -> None:
    """Answer calls until the other end of the pipe is closed. This is the program of the guarded process."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES if hard < 0 else min(_BYTES, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe = Connection(file)
    pipe.send(("ready", None))
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            return
        module, function = name.split(":")
        try:
            for result in vars(importlib.import_module(module))[function](*arguments):
                pipe.send(("result", result))
        except _ERRORS as error:
            # Messages of decoders contain values of the file, so only the type leaves this process. Other exceptions
            # end it.
            pipe.send(("error", type(error).__name__))
        else:
            pipe.send(("end", None))
