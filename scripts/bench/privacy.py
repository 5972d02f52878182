"""Seconds an update and memory of private training, against the same run without privacy and against stock Opacus.

All three train the same LoRA on the same frozen weights and samples in the same micro-batches, with SGD; each run has a
process of its own, and runs take turns. No ratio is printed unless, without noise, our private gradient is Opacus's.
README.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from interleaved import in_fresh_process, machine, worst_difference
from privacy_work import LOGICAL_BATCH, TEXT

from mllm.config.hardware import installed
from mllm.tiny.checkpoints import write_tiny

WORKER = str(Path(__file__).with_name("privacy_work.py"))
COMPETITORS = ("plain", "private", "opacus")
TOLERANCE = 1e-4
"""Largest relative difference of the norm of a clipped and averaged gradient."""


def row(name: str, runs: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]], updates: int) -> str:
    """One line of the table: medians with their range, and how many times what the plain run takes."""
    cells = [name]
    for key, scale, digits in (("seconds", updates, 2), ("cpu_seconds", updates, 2), ("bytes", 1e9, 2)):
        values = [run[key] / scale for run in runs]
        base = [run[key] / scale for run in plain]
        cells.append(f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})")
        cells.append(f"{median(values) / median(base):.2f}")
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=2, help=f"of {LOGICAL_BATCH} samples each, behind a first one")
    parser.add_argument("--physical", type=int, default=4, help="samples of a micro-batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where to write all figures as JSON")
    options = parser.parse_args(argv)
    versions = installed(["torch", "transformers", "opacus", "peft"])

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(write_tiny("vaultgemma", Path(folder) / "model", text=TEXT))

        def run(competitor: str, **changes: Any) -> dict[str, Any]:
            asked = dict(competitor=competitor, physical=options.physical, updates=options.updates)
            asked |= dict(threads=options.threads, checkpoint=checkpoint) | changes
            result = in_fresh_process(WORKER, [f"--{key}={value}" for key, value in asked.items()], options.threads)
            print(f"{competitor}: {result['seconds']:.1f} s, {result['bytes'] / 1e9:.2f} GB", flush=True)
            return result

        quiet = [run(competitor, noise=0.0, updates=1)["gradient"] for competitor in ("private", "opacus")]
        worst = worst_difference(*quiet)
        print(f"without noise {len(quiet[0])} gradients differ in norm by at most {worst:.1e} (relative)", flush=True)
        if worst > TOLERANCE:
            sys.exit(f"no ratio: gradients differ by more than {TOLERANCE:.0e} (relative), so the work is not the same")
        rounds = [{competitor: run(competitor) for competitor in COMPETITORS} for _ in range(options.rounds)]
    runs = {competitor: [turn[competitor] for turn in rounds] for competitor in COMPETITORS}
    where = f"{machine(options.threads)}; {', '.join(' '.join(pair) for pair in versions.items())}"
    print("\n| | s an update | x | CPU s an update | x | GB | x |\n|---|---|---|---|---|---|---|")
    for competitor in COMPETITORS:
        print(row(competitor, runs[competitor], runs["plain"], options.updates))
    print(f"\n{where}")
    if options.out:
        options.out.write_text(json.dumps({"where": where, "difference": worst, **runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
