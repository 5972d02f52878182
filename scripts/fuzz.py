"""Fuzzing of input files: each changed file must be read, or refused with a message, in limited time and memory.

python scripts/fuzz.py --inputs 10000

Each input is a copy of an intact file that is truncated, or in which bytes are changed, deleted, duplicated or replaced
by extreme numbers in the header; in texts, values are replaced by others. A forked worker reads it. The table counts
for each kind:

* refused: a `UserError`, whose message a command prints
* accepted: the function returned
* traceback: any other exception
* abort: the process of the worker ended
* hang: no answer within the time limit
* wrong: a header with an impossible value was accepted without a warning

Input number N depends on the seed and N only: `--only N` repeats it. The exit code is 1 if there was a traceback, an
abort, a hang or a wrong acceptance.
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
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

import numpy as np  # noqa: E402
from fuzz_headers import HEADERS, read_header  # noqa: E402
from fuzz_kinds import Kind, make_kinds  # noqa: E402

from mllm.dataset.readers import guarded, read_images  # noqa: E402
from mllm.errors import UserError  # noqa: E402

OUTCOMES = ("refused", "accepted", "traceback", "abort", "hang", "wrong")
MEMORY = 24 << 30
"""Limit of the address space of a worker, in bytes."""
HEADER_BYTES = 400
TEXTS = (".json", ".jsonl", ".csv", ".tsv", ".py", ".jinja")
TOKENS = re.compile(r'"[^"\n]*"|-?\d+(\.\d+)?|\w+')
VALUES = ("0", "-1", "1e30", "NaN", "null", "true", "[]", "{}", '""', '"x"', "12345678901234567890", "None", "[1, [2]]")


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Return changed contents of a file."""
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
    """Return a text with some numbers, strings and words replaced by other values, so that it often can be parsed."""
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


class Worker:
    """Forked process that reads inputs one after another. A new one is forked after an abort or a hang."""

    def __init__(
        self, run: Callable[[str, int], tuple[str, str]], seconds: float, prepare: Callable[[], object] = list
    ) -> None:
        self._run = run
        self._seconds = seconds
        self._prepare = prepare
        self._process = 0
        self._pipe: Connection | None = None

    def call(self, name: str, number: int) -> tuple[str, str]:
        """Return outcome and message of one input."""
        pipe = self._pipe or self._start()
        try:
            pipe.send((name, number))
            if pipe.poll(self._seconds):
                outcome, message = pipe.recv()
                return outcome, message
            self.stop()
            return "hang", f"no answer within {self._seconds:g} s"
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
        ours, theirs = Pipe()
        self._process = os.fork()
        if self._process == 0:
            ours.close()
            self._serve(theirs)
        theirs.close()
        self._pipe = ours
        ours.recv()
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
                name, number = pipe.recv()
                pipe.send(self._run(name, number))
        finally:
            os._exit(0)


def run_inputs(inputs: int, seed: int, options: argparse.Namespace, folder: Path) -> Counter[tuple[str, str]]:
    """Read all inputs and the impossible headers, print what went wrong, and return the counts by kind and outcome."""
    kinds = make_kinds(folder)
    schedule = [name for name, kind in kinds.items() for _ in range(kind.weight)]

    def run(name: str, number: int) -> tuple[str, str]:
        input_folder = Path(tempfile.mkdtemp(dir=folder))
        try:
            if name == "header":
                return read_header(number, input_folder)
            if number < 0:
                path = copy_example(kinds[name], kinds[name].examples[-number - 1], input_folder)
                outcome, message = outcome_of(lambda: kinds[name].read(path))
                return ("intact", "") if outcome == "accepted" else ("traceback", f"{path.name} is intact: {message}")
            path = write_input(kinds[name], number, seed, input_folder)
            return outcome_of(lambda: kinds[name].read(path))
        finally:
            shutil.rmtree(input_folder, ignore_errors=True)

    def prepare() -> None:
        """Import the libraries of the readers here and in the guarded process, whose time belongs to no input."""
        for name in ("image", "dicom", "nifti", "video"):
            for example in kinds[name].examples:
                read_images(example)

    jobs = [(schedule[number % len(schedule)], number) for number in range(inputs)]
    jobs = [job for job in jobs if options.only is None or job[1] == options.only]
    jobs += [(name, -n - 1) for name, kind in kinds.items() for n in range(len(kind.examples))]
    jobs += [("header", number) for number in range(len(HEADERS))] if options.only is None else []
    worker, counts, begin = Worker(run, options.seconds, prepare), Counter[tuple[str, str]](), time.monotonic()
    for name, number in jobs:
        if time.monotonic() - begin > options.minutes * 60:
            break
        outcome, message = worker.call(name, number)
        counts[name, outcome] += 1
        if outcome in OUTCOMES[2:] or options.only == number:
            print(f"{outcome}: {name} {number}: {message}", flush=True)
    worker.stop()
    return counts


def table(counts: Counter[tuple[str, str]]) -> str:
    """Return the counts as a table of Markdown."""
    lines = ["| kind | inputs | " + " | ".join(OUTCOMES) + " |", "|---" * (2 + len(OUTCOMES)) + "|"]
    names = list(dict.fromkeys(name for name, _ in counts))
    for name in [*names, "all"]:
        row = [sum(n for (k, o), n in counts.items() if name in (k, "all") and o == outcome) for outcome in OUTCOMES]
        lines.append(f"| {name} | {sum(row):,} | " + " | ".join(f"{number:,}" for number in row) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the inputs and print the table."""
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
        counts = run_inputs(options.inputs, options.seed, options, Path(folder))
    print(table(counts))
    return int(any(counts[name, outcome] for name, outcome in list(counts) if outcome in OUTCOMES[2:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
