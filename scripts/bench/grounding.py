"""Benchmark of boxes as text and boxes from heads: accuracy, tokens and seconds after the same number of updates.

Tiny models are trained on generated scenes and phantoms. grounding_work.py is one run in its own process. README.md has
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
KINDS = {"alone": "one shape", "scenes": "one of up to three shapes", "phantoms": "lesion of a phantom"}
"""Kinds of held-out images. In the first, the shape in the question is the only one."""
RATES = {"text": 4e-3, "heads": 2e-3, "state": 2e-3}
"""Learning rate of each method, selected on other images; README.md lists the trials."""


def run(method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one method and seed, and print them."""
    sizes = {"seed": seed, "steps": options.steps, "samples": options.samples, "held-out": options.held_out}
    arguments = [f"--{name}={value}" for name, value in {**sizes, "threads": options.threads}.items()]
    script = str(Path(__file__).with_name("grounding_work.py"))
    result = in_fresh_process(script, [f"--method={method}", f"--rate={RATES[method]}", *arguments], options.threads)
    losses = result.pop("losses")
    print(f"{method}, seed {seed}: loss {losses[0]:.2f} to {losses[-1]:.2f}; {result}", flush=True)
    return result


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table: one line per method and kind of image, means with minimum and maximum over seeds."""
    lines = [
        "| | accuracy at IoU 0.5 | mean IoU of boxes | mean IoU of masks "
        "| tokens per box | tokens per answer | ms per image |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, title in KINDS.items():
        for method, results in runs.items():
            figures = [result[kind] for result in results]
            cells = [spread([figure[key] for figure in figures]) for key in ("accuracy", "box_iou", "mask_iou")]
            cells.append(f"{mean(result['box_tokens'] for result in results):.0f}" if kind == "scenes" else "")
            cells += [spread([f["tokens"] for f in figures], 1), spread([1000 * f["seconds"] for f in figures], 0)]
            lines.append(f"| {title}: {NAMES[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """Return `mean (minimum-maximum)`, or an empty text if all values are None."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{mean(known):.{digits}f} ({min(known):.{digits}f}-{max(known):.{digits}f})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200, help="updates of 16 samples")
    parser.add_argument(
        "--samples", type=int, default=4096, help="training scenes; a quarter as many phantoms are added"
    )
    parser.add_argument("--held-out", type=int, default=128, help="test scenes, and half as many phantoms")
    parser.add_argument("--threads", type=int, default=1, help="threads per run")
    parser.add_argument("--parallel", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=["text", "heads"])
    options = parser.parse_args(argv)
    pairs = [(method, seed) for seed in range(options.seeds) for method in options.methods]
    with ThreadPoolExecutor(options.parallel) as pool:
        results = list(pool.map(lambda pair: run(*pair, options), pairs))
    runs = {
        method: [result for pair, result in zip(pairs, results, strict=True) if pair[0] == method]
        for method in options.methods
    }
    versions = ", ".join(" ".join(pair) for pair in installed(["torch", "transformers", "peft"]).items())
    print(f"\n{table(runs)}\n\n{options.parallel} parallel runs, each: {machine(options.threads)}; {versions}")


if __name__ == "__main__":
    main()
