"""Fuzzing of input files: each changed file must be read, or refused with a message, in limited time and memory.

python scripts/fuzz.py --inputs 10000

Each input is a changed copy of an intact file: it is truncated, or some of its bytes are changed, deleted, duplicated
or replaced by extreme numbers in the header; in texts, values are also replaced by others. A forked worker reads it.
The table counts for each kind:

* refused: the function raised a `UserError`, whose message a command prints
* accepted: the function returned
* traceback: the function raised another exception
* abort: the worker process ended
* hang: the function did not return within the time limit
* wrong: a header with an impossible value was accepted without a warning

Input number N depends on the seed and N only: `--only N` repeats it. The exit code is 1 if there was a traceback, an
abort, a hang or a wrong acceptance, and 2 if no worker process could be started, so that inputs are missing.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

import numpy as np  # noqa: E402
from fuzz_headers import HEADERS, read_header  # noqa: E402
from fuzz_kinds import Kind, make_kinds  # noqa: E402

from mllm.dataset.readers import guarded  # noqa: E402
from mllm.errors import UserError  # noqa: E402

OUTCOMES = ("refused", "accepted", "traceback", "abort", "hang", "wrong")
ATTEMPTS = 5
"""Number of attempts to start a worker; each waits twice as long as the one before it."""
MEMORY = 24 << 30
"""Limit of the address space of a worker, in bytes."""
WAIT = 1.0
"""Seconds before the second attempt to start a worker."""
HEADER_BYTES = 400
"""Number of first bytes of a file that are replaced by extreme numbers."""
TEXTS = (".json", ".jsonl", ".csv", ".tsv", ".py", ".jinja", ".xml", ".txt", ".cfg")
"""Suffixes of files in which values are replaced, too."""
TOKENS = re.compile(r'"[^"\n]*"|-?\d+(\.\d+)?|\w+')
VALUES = ("0", "-1", "1e30", "NaN", "null", "true", "[]", "{}", '""', '"x"', "12345678901234567890", "None", "[1, [2]]")


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Return the contents of a file with one to three random changes."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not changed:
            break
        start = int(rng.integers(len(changed)))
        length = int(rng.integers(1, 1 + max(1, min(64, len(changed) - start))))
        change = rng.integers(6)
        if change == 0:
            del changed[start:]
        elif change == 1:
            for at in rng.integers(0, len(changed), int(rng.integers(1, 9))):
                changed[at] = rng.integers(256)
        elif change == 2:
            del changed[start : start + length]
        elif change == 3:
            changed[start:start] = changed[start : start + length] * int(rng.integers(1, 4))
        elif change == 4:
            at = int(rng.integers(min(HEADER_BYTES, len(changed))))
            width = int(rng.choice([1, 2, 4, 8]))
            changed[at : at + width] = bytes([int(rng.choice([0, 1, 127, 128, 255]))]) * width
        else:
            changed[start : start + length] = bytes(length)
    return bytes(changed)


def replace_values(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a text with one to three numbers, strings or words replaced by `VALUES`. It often remains valid."""
    text = data.decode("utf-8")
    for _ in range(int(rng.integers(1, 4))):
        tokens = list(TOKENS.finditer(text))
        if tokens:
            start, end = tokens[int(rng.integers(len(tokens)))].span()
            text = text[:start] + str(rng.choice(VALUES)) + text[end:]
    return text.encode("utf-8")


def write_input(kind: Kind, number: int, seed: int, folder: Path) -> Path:
    """Write input `number` into an empty folder and return its path."""
    rng = np.random.default_rng([seed, number])
    example = kind.examples[int(rng.integers(len(kind.examples)))]
    path = copy_example(kind, example, folder)
    path.unlink()
    change = replace_values if example.suffix in TEXTS and rng.random() < 0.5 else mutate
    path.write_bytes(change(example.read_bytes(), rng))
    return path


def copy_example(kind: Kind, example: Path, folder: Path) -> Path:
    """Copy an intact example, and the other files of its folder, into an empty folder and return its path."""
    if kind.copy is not None:
        return kind.copy(example, folder)
    if kind.is_folder:
        for file in example.parent.iterdir():
            if file.is_file() and file != example:
                os.link(file, folder / file.name)
    path = folder / example.name
    os.link(example, path)
    return path


def outcome_of(read: Callable[[], object]) -> tuple[str, str]:
    """Return the outcome of a call and the message of its exception."""
    try:
        read()
    except UserError as error:
        return "refused", str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "traceback", "".join(traceback.format_exception(error)[-3:])
    return "accepted", ""


class StartError(Exception):
    """No worker process could be started."""


class Worker:
    """Forked process that reads inputs one after another. A new one is forked after an abort or a hang.

    Args:
        read: Function that reads the input of a job and returns the outcome and a message.
        seconds: Time limit of an input.
        prepare: Function that a new process calls before the first input.
    """

    def __init__(
        self, read: Callable[[Any], tuple[str, str]], seconds: float, prepare: Callable[[], object] = list
    ) -> None:
        self._read = read
        self._seconds = seconds
        self._prepare = prepare
        self._process = 0
        self._pipe: Connection | None = None

    def call(self, job: Any) -> tuple[str, str]:
        """Return the outcome and the message of a job; raise `StartError` if no process can be started."""
        pipe = self._pipe or self._start()
        try:
            pipe.send(job)
            if pipe.poll(self._seconds):
                outcome, message = pipe.recv()
                return outcome, message
            self.stop()
            return "hang", f"no result within {self._seconds:g} s"
        except (EOFError, OSError):
            self.stop()
            return "abort", "the process ended"

    def stop(self) -> None:
        """End the worker."""
        if self._pipe is not None:
            os.kill(self._process, 9)
            os.waitpid(self._process, 0)
            self._pipe.close()
            self._pipe = None

    def _start(self) -> Connection:
        """Start a process; try again if the machine has no memory or processes left, which may be freed."""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(WAIT * 2 ** (attempt - 1))
            try:
                return self._fork()
            except (EOFError, OSError) as error:
                self.stop()
                cause = error
        what = "it ended before its first input" if isinstance(cause, EOFError) else str(cause)
        raise StartError(
            f"no worker process could be started in {ATTEMPTS} attempts ({what}): free memory or processes"
        )

    def _fork(self) -> Connection:
        ours, theirs = Pipe()
        try:
            self._process = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if self._process == 0:
            ours.close()
            self._serve(theirs)
        theirs.close()
        self._pipe = ours
        ours.recv()  # sent when the worker is prepared
        return ours

    def _serve(self, pipe: Connection) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        logging.disable(logging.NOTSET)
        try:
            self._prepare()
            pipe.send(None)
            while True:
                pipe.send(self._read(pipe.recv()))
        finally:
            os._exit(0)


@dataclass(frozen=True)
class Job:
    """One file that a worker reads."""

    kind: str
    """Name of the kind of input; "header" for an impossible header."""
    number: int
    """Number of the input, of the intact example of its kind, or of the header, each from 0."""
    form: Literal["changed", "intact", "header"] = "changed"


class Inputs:
    """Inputs of all kinds.

    Args:
        folder: Folder of the examples and of the changed files.
        seed: Seed of the changes.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self.kinds = folder, seed, make_kinds(folder)

    def jobs(self, count: int, only: int | None) -> list[Job]:
        """Return `count` changed inputs, all intact examples and all impossible headers.

        With `only`, the input of this number is the only changed one, and there are no headers.
        """
        schedule = [name for name, kind in self.kinds.items() for _ in range(kind.weight)]
        numbers = range(count) if only is None else [only]
        changed = [Job(schedule[number % len(schedule)], number) for number in numbers]
        intact = [Job(name, n, "intact") for name, kind in self.kinds.items() for n in range(len(kind.examples))]
        headers = [Job("header", number, "header") for number in range(len(HEADERS))]
        return changed + intact + (headers if only is None else [])

    def prepare(self) -> None:
        """Import the libraries of the readers here and in the guarded process, so that no input includes this time."""
        for name in ("image", "dicom", "nifti", "itk", "video"):
            for example in self.kinds[name].examples:
                self.kinds[name].read(example)

    def read(self, job: Job) -> tuple[str, str]:
        """Read the file of a job and return the outcome and a message. The outcome of an intact file is "intact"."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            if job.form == "header":
                return read_header(job.number, folder)
            kind = self.kinds[job.kind]
            if job.form == "changed":
                path = write_input(kind, job.number, self.seed, folder)
                return outcome_of(lambda: kind.read(path))
            path = copy_example(kind, kind.examples[job.number], folder)
            outcome, message = outcome_of(lambda: kind.read(path))
            return ("intact", "") if outcome == "accepted" else ("traceback", f"{path.name} is intact: {message}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def run_inputs(options: argparse.Namespace, folder: Path) -> tuple[Counter[tuple[str, str]], bool]:
    """Read all inputs and print those with a wrong outcome.

    Returns:
        The counts by kind and outcome, and False if inputs are left because no worker could be started.
    """
    inputs = Inputs(folder, options.seed)
    worker, counts = Worker(inputs.read, options.seconds, inputs.prepare), Counter[tuple[str, str]]()
    start = time.monotonic()
    jobs = inputs.jobs(options.inputs, options.only)
    for job in jobs:
        if time.monotonic() - start > options.minutes * 60:
            break
        try:
            outcome, message = worker.call(job)
        except StartError as error:
            left = len(jobs) - counts.total()
            print(f"{left:,} inputs were not read, from {job.kind} {job.number} on: {error}", flush=True)
            return counts, False
        counts[job.kind, outcome] += 1
        if outcome in OUTCOMES[2:] or (job.form == "changed" and job.number == options.only):
            print(f"{outcome}: {job.kind} {job.number}: {message}", flush=True)
    worker.stop()
    return counts, True


def table(counts: Counter[tuple[str, str]]) -> str:
    """Return the counts as a Markdown table."""
    lines = ["| kind | inputs | " + " | ".join(OUTCOMES) + " |", "|---" * (2 + len(OUTCOMES)) + "|"]
    names = list(dict.fromkeys(name for name, _ in counts))
    for name in [*names, "all"]:
        row = [sum(n for (k, o), n in counts.items() if name in (k, "all") and o == outcome) for outcome in OUTCOMES]
        lines.append(f"| {name} | {sum(row):,} | " + " | ".join(f"{number:,}" for number in row) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Read the inputs and print the table. Return 1 if an outcome is wrong, else 2 if inputs are left."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=1000, help="number of changed files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the only input to read; its message is printed")
    parser.add_argument("--seconds", type=float, default=20.0, help="time limit of an input")
    parser.add_argument("--minutes", type=float, default=60.0, help="time limit of all inputs")
    options = parser.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    guarded.SECONDS = options.seconds / 3
    with tempfile.TemporaryDirectory() as folder:
        counts, is_complete = run_inputs(options, Path(folder))
    print(table(counts))
    return 1 if any(outcome in OUTCOMES[2:] for _, outcome in counts) else 0 if is_complete else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
