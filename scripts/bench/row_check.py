"""Benchmark of the check of all rows before a training: seconds and memory for each kind of table.

Every row has an image file of its own, which the check looks up; the images of 16 rows are decoded. A kind is opened
and checked in a new process. README.md has the figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from interleaved import in_fresh_process, machine, sampled_memory
from row_check_work import KINDS

from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits

WORKERS = 2
"""Worker processes, as in the shipped configs."""


def anonymous() -> int:
    """Return the resident memory of this process in bytes without pages of files, such as a mapped Parquet file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def work(options: dict[str, Any], profile: Path | None = None) -> dict[str, float]:
    """Open and check a dataset; return CPU seconds of both, seconds of both with workers, and memory in bytes.

    Args:
        options: Options of the dataset with its type.
        profile: File for a profile by cProfile, which slows the check down; None: no profile.
    """
    gc.collect()
    memory = anonymous()
    cpu = time.process_time()
    with sampled_memory(anonymous) as opening:
        dataset = build_dataset(options)
    opened = time.process_time() - cpu
    if profile is not None:
        import cProfile

        with cProfile.Profile() as recorded:
            check_splits({"train": dataset})
        recorded.dump_stats(profile)
        cpu = time.process_time() - opened
    with sampled_memory(anonymous) as checking:
        splits = check_splits({"train": dataset})
    cpu = time.process_time() - cpu
    start = time.perf_counter()
    check_splits({"train": dataset}, workers=WORKERS)
    return {
        "rows": splits.reports["train"].answers.rows,
        "open": opened,
        "cpu": cpu,
        "with workers": time.perf_counter() - start + opened,
        "open bytes": opening.bytes - memory,
        "peak bytes": max(opening.bytes, checking.bytes) - memory,
    }


def kept(options: dict[str, Any]) -> dict[str, float]:
    """Return the bytes a row that an opened dataset and the report of its check keep, as `tracemalloc` counts them."""
    gc.collect()
    tracemalloc.start()
    try:
        dataset = build_dataset(options)
        gc.collect()
        opened = tracemalloc.get_traced_memory()[0]
        splits = check_splits({"train": dataset})
        gc.collect()
        checked = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    rows = splits.reports["train"].answers.rows
    return {"kept by the dataset": opened / rows, "kept by the report": (checked - opened) / rows}


def line(kind: str, small: Sequence[dict[str, float]], large: Sequence[dict[str, float]]) -> str:
    """Return a line of the table: medians with the range of the CPU seconds.

    Args:
        kind: Name of the kind of table.
        small: Figures of the runs with few rows; the first has those of `kept`, too.
        large: Figures of the runs with many rows.
    """
    seconds = [run["cpu"] for run in large]
    cells = [f"{large[0]['rows']:,}", f"{median(run['open'] for run in large):.1f}"]
    cells.append(f"{median(seconds):.1f} ({min(seconds):.1f}-{max(seconds):.1f})")
    cells.append(f"**{median(run['with workers'] for run in large):.1f}**")
    for name in ("open bytes", "peak bytes"):
        cells.append(", ".join(f"{median(run[name] for run in runs) / 1e6:.0f}" for runs in (small, large)))
    cells += [f"{small[0][name]:.0f}" for name in ("kept by the dataset", "kept by the report")]
    return f"| {kind} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs=2, default=(10_000, 100_000), help="few and many rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--folder", type=Path, help="folder of the data; the default is a temporary one")
    parser.add_argument("--profile", type=Path, help="folder for a profile of each kind by cProfile")
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--kept", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.options:
        with tempfile.TemporaryDirectory() as small:  # imports the packages that this kind needs
            check_splits({"train": build_dataset(KINDS[options.kinds[0]](Path(small), 20))})
        figures = kept(options.options) if options.kept else work(options.options, options.profile)
        options.result.write_text(json.dumps(figures))
        return
    seconds, memory = "open: CPU s | open and check: CPU s | with workers: s", "open: MB | open and check: MB"
    print(f"| | rows | {seconds} | {memory} | kept | kept by the report |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in options.kinds:
        few, many = options.rows
        print(line(kind, _measure(kind, few, options, True), _measure(kind, many, options)), flush=True)
    print(f"\n{options.rounds} rounds; {machine(1)}")


def _measure(kind: str, rows: int, options: argparse.Namespace, with_kept: bool = False) -> list[dict[str, float]]:
    """Return the figures of all rounds with a number of rows; the first one has those of `kept`, too, if asked."""
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        arguments = [f"--options={json.dumps(KINDS[kind](folder, rows))}", f"--kinds={kind}"]
        first = in_fresh_process(__file__, [*arguments, "--kept"], 1) if with_kept else {}
        if options.profile is not None:
            arguments.append(f"--profile={options.profile / kind.replace(' ', '_')}.prof")
        runs = [in_fresh_process(__file__, arguments, 1) for _ in range(options.rounds)]
        return [{**runs[0], **first}, *runs[1:]]
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
