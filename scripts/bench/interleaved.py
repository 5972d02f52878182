"""Shared parts of the benchmarks: runs in separate processes, memory sampling, medians and tables."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

INTERVAL = 0.005
"""Seconds between two memory samples."""


@dataclass
class Peak:
    """Peak of the sampled memory of this process, in bytes."""

    bytes: int = 0


def resident_memory() -> AbstractContextManager[Peak]:
    """Sample the resident memory of this process in the block. `ru_maxrss` would include the peak of loading."""
    process = psutil.Process()
    return sampled_memory(lambda: process.memory_info().rss)


@contextmanager
def sampled_memory(read: Callable[[], int]) -> Iterator[Peak]:
    """Sample in the block the memory that a function returns, in bytes."""
    peak, done = Peak(), threading.Event()

    def sample() -> None:
        ended = False
        while not ended:
            ended = done.wait(INTERVAL)
            peak.bytes = max(peak.bytes, read())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()


def in_fresh_process(script: str, arguments: Sequence[str], threads: int) -> dict[str, Any]:
    """Run `script ARGUMENTS --result FILE` in a new process and return the contents of FILE; exit if it fails."""
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, script, *arguments, "--result", str(result)]
        completed = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if completed.returncode:
            sys.exit(f"{completed.stdout[-4000:]}\n{' '.join(arguments)} failed with exit code {completed.returncode}")
        values: dict[str, Any] = json.loads(result.read_text())
        return values


def worst_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the largest relative difference between two lists of equal length."""
    assert len(ours) == len(theirs) > 0
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


@dataclass(frozen=True)
class Figures:
    """Figures of one competitor over all rounds."""

    seconds: list[float]
    """Seconds per epoch, one entry per round."""
    gigabytes: list[float]
    """Peak resident memory during training in 10^9 bytes, one entry per round."""

    @classmethod
    def of(cls, runs: Sequence[dict[str, Any]]) -> Figures:
        """Return the figures of the runs of one competitor."""
        return cls([run["seconds"] for run in runs], [run["bytes"] / 1e9 for run in runs])


def table(rows: dict[str, tuple[Figures, Figures]], ours: str, theirs: str) -> str:
    """Return a Markdown table with one line per setting; `rows[setting]` is a pair of our figures and theirs."""
    lines = [
        f"| | {theirs}: s per epoch | {ours}: s per epoch | speedup | {theirs}: GB | {ours}: GB | memory ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting, (our, their) in rows.items():
        speed = median(their.seconds) / median(our.seconds)
        memory = median(our.gigabytes) / median(their.gigabytes)
        lines.append(
            f"| {setting} | {_spread(their.seconds)} | {_spread(our.seconds)} | **{speed:.2f}** "
            f"| {median(their.gigabytes):.2f} | {median(our.gigabytes):.2f} | {memory:.2f} |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def machine(threads: int) -> str:
    """Return one line about the machine: processor, threads, memory, load and Python version."""
    import torch

    names = [line for line in _cpuinfo() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{name}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads of {psutil.cpu_count()} cores, "
        f"{memory:.0f} GiB, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
