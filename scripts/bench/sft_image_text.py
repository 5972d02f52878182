"""Seconds an epoch and memory of image-and-text LoRA training, against TRL's SFTTrainer on the same work.

Both train the same adapter on the same frozen weights, samples and order, with the same optimizer; each run has a
process of its own, and runs alternate. No ratio is printed unless both do the same work. README.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from interleaved import Figures, in_fresh_process, machine, table, worst_difference
from sft_work import LOGICAL_BATCH, TEXT, VISION

from mllm.config.hardware import installed
from mllm.tiny.checkpoints import write_tiny

WORKER = str(Path(__file__).with_name("sft_work.py"))
TOKENS = 1536
"""Padded tokens of one of our micro-batches."""
TRL_BATCHES = (2, 4, 16)
"""Samples of TRL's micro-batches that are tried, accumulated to the logical batch; the fastest is the one to beat."""
TOLERANCE = 1e-5
"""Largest relative difference of a sample's loss before training."""
DRIFT = 1e-3
"""Largest relative difference of an update's loss; rounding in earlier updates has part in it."""


def compare(dtype: str, checkpoint: str, options: argparse.Namespace) -> dict[str, Any]:
    """The runs of both in one precision: their losses, then TRL's micro-batches, then the alternating rounds."""

    def run(competitor: str, size: int, *more: str) -> dict[str, Any]:
        asked = dict(competitor=competitor, size=size, dtype=dtype, checkpoint=checkpoint)
        asked |= dict(samples=options.samples, threads=options.threads)
        result = in_fresh_process(
            WORKER, [*(f"--{key}={value}" for key, value in asked.items()), *more], options.threads
        )
        if "seconds" in result:
            print(f"{dtype} {competitor} {size}: {result['seconds']:.1f} s, {result['bytes'] / 1e9:.2f} GB", flush=True)
        return result

    # Padding moves the rounding of bf16, so there every sample is asked for alone.
    sizes = (options.tokens_per_micro_batch, 4) if dtype == "fp32" else (1, 1)
    losses = [run(who, size, "--losses")["losses"] for who, size in zip(("ours", "trl"), sizes, strict=True)]
    worst = worst_difference(*losses)
    print(f"{dtype}: the losses of {len(losses[0])} samples differ by at most {worst:.1e} (relative)", flush=True)
    if worst > TOLERANCE:
        sys.exit(f"no ratio: losses differ by more than {TOLERANCE:.0e} (relative), so the work is not the same")
    tried = {size: run("trl", size) for size in TRL_BATCHES}
    fastest = min(tried, key=lambda size: tried[size]["seconds"])
    rounds = [(run("ours", options.tokens_per_micro_batch), run("trl", fastest)) for _ in range(options.rounds)]
    for ours, trl in rounds:
        if ours["scored"] != trl["scored"]:
            sys.exit(f"no ratio: TRL projected {trl['scored']} positions, and {ours['scored']} are supervised")
        if worst_difference(ours["steps"], trl["steps"]) > DRIFT:
            sys.exit(f"no ratio: the updates' losses part: {ours['steps']} and {trl['steps']}")
    ours, trl = ([pair[i] for pair in rounds] for i in (0, 1))
    return {"loss_difference": worst, "fastest": fastest, "tried": tried, "ours": ours, "trl": trl}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64, help=f"of one epoch, a multiple of {LOGICAL_BATCH}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--tokens-per-micro-batch", type=int, default=TOKENS)
    parser.add_argument("--out", type=Path, help="where to write all figures as JSON")
    options = parser.parse_args(argv)
    if options.samples <= 0 or options.samples % LOGICAL_BATCH:
        parser.error(f"--samples must be a multiple of {LOGICAL_BATCH}")
    versions = installed(["torch", "transformers", "trl", "peft"])
    if "trl" not in versions:
        sys.exit("this benchmark measures against TRL, which is not installed: pip install -e .[bench]")
    where = f"{machine(options.threads)}; {', '.join(' '.join(pair) for pair in versions.items())}"
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(write_tiny("medgemma", Path(folder) / "model", text=TEXT, vision=VISION))
        found = {dtype: compare(dtype, checkpoint, options) for dtype in options.dtype}
    rows = {
        f"{dtype}, TRL in {LOGICAL_BATCH // runs['fastest']} micro-batches of {runs['fastest']}": (
            Figures.of(runs["ours"]),
            Figures.of(runs["trl"]),
        )
        for dtype, runs in found.items()
    }
    print(f"\n{table(rows, 'ours', 'TRL')}\n\n{where}")
    if options.out:
        options.out.write_text(json.dumps({"where": where, "samples": options.samples, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
