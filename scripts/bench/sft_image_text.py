"""Benchmark of LoRA training with images and text: seconds per epoch and memory, compared with TRL's SFTTrainer.

Both train the same adapter on the same frozen weights and samples in the same order with the same optimizer. Runs
alternate, each in its own process. A ratio is printed only if both do the same work. README.md has the figures.
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
from step_profile import profile_table

from mllm.config.hardware import installed
from mllm.tiny.checkpoints import write_tiny

WORKER = str(Path(__file__).with_name("sft_work.py"))
TOKENS = 1536
"""Padded tokens per micro-batch of our trainer."""
OURS = {"ours": "first epoch", "stored": "later epochs, with stored features"}
"""Runs of our trainer, and their labels."""
TRL_BATCHES = (2, 4, 16)
"""Samples per micro-batch of TRL, accumulated to the logical batch; the fastest one is compared."""
TOLERANCE = 1e-5
"""Largest allowed relative difference of the loss of a sample before training."""
DRIFT = 1e-3
"""Largest allowed relative difference of the loss of an update, which includes rounding in earlier updates."""


def profiled(dtype: str, checkpoint: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the profile of an update of each trainer; TRL has micro-batches of its smallest size."""
    sizes = {name: options.tokens_per_micro_batch for name in OURS if options.questions or name == "ours"}
    profiles = {}
    for name, size in {"trl": TRL_BATCHES[0], **sizes}.items():
        arguments = dict(competitor=name, size=size, dtype=dtype, checkpoint=checkpoint, samples=LOGICAL_BATCH)
        arguments |= dict(questions=options.questions, threads=options.threads)
        command = [*(f"--{key}={value}" for key, value in arguments.items()), "--profile"]
        profiles[OURS.get(name, f"TRL in micro-batches of {size}")] = in_fresh_process(WORKER, command, options.threads)
    return profiles


def compare(dtype: str, checkpoint: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the runs of both trainers in one precision: losses, micro-batches of TRL, and alternating rounds."""

    def run(competitor: str, size: int, *more: str) -> dict[str, Any]:
        arguments = dict(competitor=competitor, size=size, dtype=dtype, checkpoint=checkpoint)
        arguments |= dict(samples=options.samples, questions=options.questions, threads=options.threads)
        result = in_fresh_process(
            WORKER, [*(f"--{key}={value}" for key, value in arguments.items()), *more], options.threads
        )
        if "seconds" in result:
            print(f"{dtype} {competitor} {size}: {result['seconds']:.1f} s, {result['bytes'] / 1e9:.2f} GB", flush=True)
        return result

    # Padding changes the rounding in bf16, so each sample is a batch there.
    tokens, samples = (options.tokens_per_micro_batch, 4) if dtype == "fp32" else (1, 1)
    ours = [name for name in OURS if options.questions or name == "ours"]  # a text has no stored features
    expected = run("trl", samples, "--losses")["losses"]
    losses = [run(competitor, tokens, "--losses")["losses"] for competitor in ours]
    worst = max(worst_difference(own, expected) for own in losses)
    print(f"{dtype}: the losses of {len(expected)} samples differ by at most {worst:.1e} (relative)", flush=True)
    if worst > TOLERANCE:
        sys.exit(f"no ratio: losses differ by more than {TOLERANCE:.0e} (relative)")
    by_size = {size: run("trl", size) for size in TRL_BATCHES}
    fastest = min(by_size, key=lambda size: by_size[size]["seconds"])
    results: dict[str, list[Any]] = {name: [] for name in (*ours, "trl")}
    for _ in range(options.rounds):
        for name, measured in results.items():
            measured.append(run(name, fastest if name == "trl" else options.tokens_per_micro_batch))
        trl = results["trl"][-1]
        for own in (results[name][-1] for name in ours):
            if own["scored"] != trl["scored"]:
                sys.exit(f"no ratio: TRL computed {trl['scored']} logits, and {own['scored']} tokens are supervised")
            if worst_difference(own["steps"], trl["steps"]) > DRIFT:
                sys.exit(f"no ratio: the losses of the updates differ: {own['steps']} and {trl['steps']}")
    return {"loss_difference": worst, "fastest": fastest, "tried": by_size, **results}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64, help=f"samples per epoch, a multiple of {LOGICAL_BATCH}")
    parser.add_argument("--questions", type=int, default=1, help="about each image; 0: texts, packed in ours")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--tokens-per-micro-batch", type=int, default=TOKENS)
    parser.add_argument("--profile", action="store_true", help="profile one update of each instead of timing epochs")
    parser.add_argument("--out", type=Path, help="output file of all figures (JSON)")
    options = parser.parse_args(argv)
    if options.samples <= 0 or options.samples % LOGICAL_BATCH:
        parser.error(f"--samples must be a multiple of {LOGICAL_BATCH}")
    versions = installed(["torch", "transformers", "trl", "peft"])
    if "trl" not in versions:
        sys.exit("this benchmark needs TRL, which is not installed: pip install -e .[bench]")
    where = f"{machine(options.threads)}; {', '.join(' '.join(pair) for pair in versions.items())}"
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(write_tiny("medgemma", Path(folder) / "model", text=TEXT, vision=VISION))
        if options.profile:
            for dtype in options.dtype:
                print(f"{dtype}\n\n{profile_table(profiled(dtype, checkpoint, options))}\n")
            print(where)
            return
        results = {dtype: compare(dtype, checkpoint, options) for dtype in options.dtype}
    rows = {
        f"{dtype}, {label}, TRL in {LOGICAL_BATCH // runs['fastest']} micro-batches of {runs['fastest']}": (
            Figures.of(runs[name]),
            Figures.of(runs["trl"]),
        )
        for dtype, runs in results.items()
        for name, label in OURS.items()
        if name in runs
    }
    print(f"\n{table(rows, 'ours', 'TRL')}\n\n{where}")
    if options.out:
        options.out.write_text(json.dumps({"where": where, "samples": options.samples, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
