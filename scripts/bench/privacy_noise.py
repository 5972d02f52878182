"""Benchmark of the noise of a private update: seconds for as many values as a LoRA has.

The noise is added to a tensor of zeros on the CPU. For comparison, `torch.randn` draws by the generator of PyTorch. A
private run does not use it, because its seed has 32 bits on a CPU. README.md has the figures.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import torch
from interleaved import machine
from torch import Tensor

from mllm.config.hardware import installed
from mllm.engine.privacy.noise import Noise


def add_randn(tensor: Tensor, std: float, step: int) -> None:
    """Add noise of PyTorch's generator."""
    tensor.add_(torch.randn(tensor.shape), alpha=std)


def measure(add: Callable[[Tensor, float, int], None], values: int, rounds: int) -> list[tuple[float, float]]:
    """Return wall and CPU seconds of each round. The first is a warm-up and is left out."""
    tensor, figures = torch.zeros(values), []
    for step in range(rounds + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        add(tensor, 1.0, step)
        figures.append((time.perf_counter() - wall, time.process_time() - cpu))
    return figures[1:]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--values", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args(argv)
    kinds = {"torch.randn": add_randn, "ours": Noise().add, "ours, secure_mode": Noise(secure=True).add}
    print("| | threads | ms | CPU ms | CPU ns per value |\n|---|---|---|---|---|")
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, add in kinds.items():
            figures = measure(add, options.values, options.rounds)
            walls, cpus = ([1e3 * seconds for seconds in column] for column in zip(*figures, strict=True))
            cells = [f"{median(column):,.0f} ({min(column):,.0f}-{max(column):,.0f})" for column in (walls, cpus)]
            print(
                f"| {name} | {threads} | {' | '.join(cells)} | {1e6 * median(cpus) / options.values:.0f} |", flush=True
            )
    versions = ", ".join(" ".join(pair) for pair in installed(["torch", "numpy"]).items())
    print(f"\n{options.values:,} values; {machine(max(options.threads))}; {versions}")


if __name__ == "__main__":
    main()
