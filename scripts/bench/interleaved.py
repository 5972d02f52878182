"""What every benchmark here shares: competitors in fresh processes, memory sampled in training, medians, a table."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

INTERVAL = 0.005
"""Seconds between two looks at the memory."""


@dataclass
class Peak:
    """The most memory that this process was seen to hold."""

    bytes: int = 0


@contextmanager
def resident_memory() -> Iterator[Peak]:
    """Samples this process's resident memory inside the block; `ru_maxrss` would hold the peak of loading too."""
    peak, process, done = Peak(), psutil.Process(), threading.Event()

    def sample() -> None:
        ended = False
        while not ended:
            ended = done.wait(INTERVAL)
            peak.bytes = max(peak.bytes, process.memory_info().rss)

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def in_fresh_process(script: str, arguments: Sequence[str], threads: int) -> dict[str, Any]:
    """What `script ARGUMENTS --result FILE` writes into FILE, run in a process of its own; exits where it fails."""
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, script, *arguments, "--result", str(result)]
        ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if ran.returncode:
            sys.exit(f"{ran.stdout[-4000:]}\n{' '.join(arguments)} ended with exit code {ran.returncode}")
        answer: dict[str, Any] = json.loads(result.read_text())
        return answer


def worst_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest relative difference of two lists of equal length."""
    assert len(ours) == len(theirs) > 0
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


@dataclass(frozen=True)
class Figures:
    """What one competitor showed over all rounds."""

    seconds: list[float]
    """Of one epoch, one entry a round."""
    gigabytes: list[float]
    """Peak resident memory while training, 10^9 bytes, one entry a round."""

    @classmethod
    def of(cls, runs: Sequence[dict[str, Any]]) -> Figures:
        """The figures of the runs of one competitor."""
        return cls([run["seconds"] for run in runs], [run["bytes"] / 1e9 for run in runs])


def table(rows: dict[str, tuple[Figures, Figures]], ours: str, theirs: str) -> str:
    """A Markdown table: one line for each setting, `rows[setting]` being what ours and theirs showed."""
    lines = [
        f"| | {theirs}: s an epoch | {ours}: s an epoch | times as fast | {theirs}: GB | {ours}: GB | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting, (mine, other) in rows.items():
        speed = median(other.seconds) / median(mine.seconds)
        memory = median(mine.gigabytes) / median(other.gigabytes)
        lines.append(
            f"| {setting} | {_spread(other.seconds)} | {_spread(mine.seconds)} | **{speed:.2f}** "
            f"| {median(other.gigabytes):.2f} | {median(mine.gigabytes):.2f} | {memory:.2f} |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def machine(threads: int) -> str:
    """One line about where the figures were taken."""
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
