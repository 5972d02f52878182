"""Benchmark of the check of all rows before a training: seconds and memory for each kind of table.

Every row has an image file of its own, which the check looks up; the images of 16 rows are decoded. A kind is opened
and checked in a new process. README.md has the figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import psutil
from interleaved import in_fresh_process, machine, resident_memory
from row_check_work import KINDS

from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits


def work(options: dict[str, Any], profile: Path | None = None) -> dict[str, float]:
    """Open and check a dataset; return CPU and wall seconds of both together, and memory in bytes.

    Args:
        options: Options of the dataset with its type.
        profile: File for a profile by cProfile, which slows the check down; None: no profile.
    """
    gc.collect()
    memory, wall = psutil.Process().memory_info().rss, time.perf_counter()
    cpu = time.process_time()
    with resident_memory() as opening:
        dataset = build_dataset(options)
    opened = time.process_time() - cpu
    if profile is not None:
        import cProfile

        with cProfile.Profile() as recorded:
            check_splits({"train": dataset})
        recorded.dump_stats(profile)
        cpu = time.process_time() - opened
    with resident_memory() as checking:
        splits = check_splits({"train": dataset})
    return {
        "rows": splits.reports["train"].answers.rows,
        "open": opened,
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "open bytes": opening.bytes - memory,
        "check bytes": checking.bytes - opening.bytes,
        "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def line(kind: str, runs: Sequence[dict[str, float]]) -> str:
    """Return a line of the table: medians with the range of the CPU seconds."""
    seconds = [run["cpu"] for run in runs]
    cells = [f"{runs[0]['rows']:,}", f"{median(run['open'] for run in runs):.1f}"]
    cells.append(f"**{median(seconds):.1f}** ({min(seconds):.1f}-{max(seconds):.1f})")
    cells += [f"{median(run[name] for run in runs) / 1e6:.0f}" for name in ("open bytes", "check bytes")]
    return f"| {kind} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--folder", type=Path, help="folder of the data; the default is a temporary one")
    parser.add_argument("--profile", type=Path, help="folder for a profile of each kind by cProfile")
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.options:
        with tempfile.TemporaryDirectory() as small:  # imports the packages that this kind needs
            check_splits({"train": build_dataset(KINDS[options.kinds[0]](Path(small), 20))})
        options.result.write_text(json.dumps(work(options.options, options.profile)))
        return
    print("| | rows | open: CPU s | open and check: CPU s | open: MB | check: MB more |\n|---|---|---|---|---|---|")
    for kind in options.kinds:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            arguments = [f"--options={json.dumps(KINDS[kind](folder, options.rows))}", f"--kinds={kind}"]
            if options.profile is not None:
                arguments.append(f"--profile={options.profile / kind.replace(' ', '_')}.prof")
            runs = [in_fresh_process(__file__, arguments, 1) for _ in range(options.rounds)]
        finally:
            shutil.rmtree(folder)
        print(line(kind, runs), flush=True)
    print(f"\n{options.rounds} rounds; {machine(1)}")


if __name__ == "__main__":
    main()
