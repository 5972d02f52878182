"""Benchmark of private training: seconds per update and memory, compared with plain training and with Opacus.

All three train the same LoRA on the same frozen weights and samples in the same micro-batches with SGD. Runs alternate,
each in its own process. A ratio is printed only if our private gradient without noise equals that of Opacus. README.md
has the figures.
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
from privacy_work import LOGICAL_BATCH, SPANS, TEXT

from mllm.config.hardware import installed
from mllm.tiny.checkpoints import write_tiny

WORKER = str(Path(__file__).with_name("privacy_work.py"))
COMPETITORS = ("plain", "private", "opacus")
TOLERANCE = 1e-4
"""Largest allowed relative difference of the norm of a clipped and averaged gradient."""


def row(name: str, runs: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]], updates: int) -> str:
    """Return one line of the table: medians with their ranges, and their ratios to plain training."""
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
    parser.add_argument("--updates", type=int, default=2, help=f"updates of {LOGICAL_BATCH} samples after the first")
    parser.add_argument("--physical", type=int, default=4, help="samples per micro-batch")
    parser.add_argument("--texts", choices=tuple(SPANS), default="short", help="lengths of questions and answers")
    parser.add_argument("--packed", type=int, default=0, help="tokens of a row of packed samples of ours; 0: none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="output file of all figures (JSON)")
    options = parser.parse_args(argv)
    versions = installed(["torch", "transformers", "opacus", "peft"])

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(write_tiny("vaultgemma", Path(folder) / "model", text=TEXT))

        def run(competitor: str, **changes: Any) -> dict[str, Any]:
            arguments = dict(competitor=competitor, physical=options.physical, updates=options.updates)
            arguments |= dict(threads=options.threads, checkpoint=checkpoint, texts=options.texts)
            arguments |= dict(packed=options.packed) | changes
            result = in_fresh_process(WORKER, [f"--{key}={value}" for key, value in arguments.items()], options.threads)
            print(f"{competitor}: {result['seconds']:.1f} s, {result['bytes'] / 1e9:.2f} GB", flush=True)
            return result

        gradients = [run(competitor, noise=0.0, updates=1)["gradient"] for competitor in ("private", "opacus")]
        worst = worst_difference(*gradients)
        print(
            f"without noise {len(gradients[0])} gradients differ in norm by at most {worst:.1e} (relative)", flush=True
        )
        if worst > TOLERANCE:
            sys.exit(f"no ratio: gradients differ by more than {TOLERANCE:.0e} (relative)")
        rounds = [{competitor: run(competitor) for competitor in COMPETITORS} for _ in range(options.rounds)]
    runs = {competitor: [runs[competitor] for runs in rounds] for competitor in COMPETITORS}
    where = f"{machine(options.threads)}; {', '.join(' '.join(pair) for pair in versions.items())}"
    print("\n| | s per update | ratio | CPU s per update | ratio | GB | ratio |\n|---|---|---|---|---|---|---|")
    for competitor in COMPETITORS:
        print(row(competitor, runs[competitor], runs["plain"], options.updates))
    print(f"\n{where}")
    if options.out:
        options.out.write_text(json.dumps({"where": where, "difference": worst, **runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
