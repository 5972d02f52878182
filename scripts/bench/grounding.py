"""Boxes as text against a token that heads read: accuracy, tokens and seconds after equally many updates.

Tiny models learn on generated scenes and phantoms; grounding_work.py is one run, in a process of its own. README.md has
the figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from interleaved import in_fresh_process, machine

from mllm.config.hardware import installed

NAMES = {"text": "boxes as text", "heads": "heads", "state": "heads of one state"}
KINDS = {"alone": "one shape", "scenes": "one of up to three shapes", "phantoms": "a phantom's lesion"}
"""The held-out pictures by what is asked for in them; in the first nothing has to be told from anything else."""
RATES = {"text": 4e-3, "heads": 2e-3, "state": 2e-3}
"""Each way's learning rate, chosen on pictures that the figures are not taken from; README.md names the trials."""


def run(way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one way on one seed, printed as soon as they are there."""
    sizes = {"seed": seed, "steps": options.steps, "samples": options.samples, "held-out": options.held_out}
    arguments = [f"--{name}={value}" for name, value in {**sizes, "threads": options.threads}.items()]
    script = str(Path(__file__).with_name("grounding_work.py"))
    found = in_fresh_process(script, [f"--way={way}", f"--rate={RATES[way]}", *arguments], options.threads)
    losses = found.pop("losses")
    print(f"{way}, seed {seed}: loss {losses[0]:.2f} to {losses[-1]:.2f}; {found}", flush=True)
    return found


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: a line for each way and kind of picture, means with the least and the greatest of the seeds."""
    lines = [
        "| | accuracy at IoU 0.5 | mean IoU of boxes | mean IoU of masks "
        "| tokens a place | tokens an answer | ms an image |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, title in KINDS.items():
        for way, found in runs.items():
            asked = [one[kind] for one in found]
            cells = [spread([one[key] for one in asked]) for key in ("accuracy", "box_iou", "mask_iou")]
            cells.append(f"{mean(one['place_tokens'] for one in found):.0f}" if kind == "scenes" else "")
            cells += [spread([one["tokens"] for one in asked], 1), spread([1000 * one["seconds"] for one in asked], 0)]
            lines.append(f"| {title}: {NAMES[way]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """`mean (least-greatest)`; nothing where there is no value."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{mean(known):.{digits}f} ({min(known):.{digits}f}-{max(known):.{digits}f})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200, help="updates of 16 samples")
    parser.add_argument("--samples", type=int, default=4096, help="training scenes, and a quarter as many phantoms")
    parser.add_argument("--held-out", type=int, default=128, help="test scenes, and half as many phantoms")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side")
    parser.add_argument("--ways", nargs="+", choices=NAMES, default=["text", "heads"])
    options = parser.parse_args(argv)
    pairs = [(way, seed) for seed in range(options.seeds) for way in options.ways]
    with ThreadPoolExecutor(options.at_once) as pool:
        found = list(pool.map(lambda pair: run(*pair, options), pairs))
    runs = {way: [one for pair, one in zip(pairs, found, strict=True) if pair[0] == way] for way in options.ways}
    versions = ", ".join(" ".join(pair) for pair in installed(["torch", "transformers", "peft"]).items())
    print(f"\n{table(runs)}\n\n{options.at_once} runs at once, each: {machine(options.threads)}; {versions}")


if __name__ == "__main__":
    main()
