"""Benchmark of metrics over a million predictions: seconds and memory of adding them, and of the intervals by patient.

Predictions are generated one by one and read by each streaming metric in a process of its own. README.md has the
figures.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import psutil
from interleaved import in_fresh_process, machine

from mllm.metrics.base import content_read
from mllm.metrics.bootstrap import RESAMPLES
from mllm.metrics.scoring import Series, is_streaming
from mllm.registry import METRICS
from mllm.structures import Answer, Mark

CLASSES = ("no finding", "edema", "pneumonia", "effusion")
LEFT_OUT = {
    "meteor": "Java",
    "dice": "images",
    "iou": "images",
    "hd95": "images",
    "nsd": "images",
    "res": "images",
    "coco_ap": "keeps all boxes",
    "cider": "keeps all words",
}
"""Metrics that are not measured, and the reason."""


def answers(name: str, rows: int, patient: int) -> Iterator[tuple[Answer, Answer]]:
    """Yield prediction and reference of each row for a metric; `patient` rows have one patient.

    A tenth of the rows has an answer of its own, nine in ten are of a few classes.
    """
    draws, content = random.Random(0), content_read(METRICS.find(name))
    for number in range(rows):
        group = f"P{number // patient:07}"
        true, said = draws.choice(CLASSES), draws.choice(CLASSES)
        scores: dict[str, float] = {}
        marks: tuple[list[Mark], list[Mark]] = [], []
        if content in ("number", "measures"):
            value = draws.gauss(55, 10)
            unit = "EF {:.1f} %" if content == "measures" else "{:.1f}"
            true, said = unit.format(value), unit.format(value + draws.gauss(0, 4))
        elif content in ("box", "objects"):
            x, y = draws.uniform(0, 400), draws.uniform(0, 400)
            marks = [Mark(box=(x, y, x + 50, y + 50))], [Mark(box=(x + 5, y, x + 60, y + 55))]
            true = said = "<box>"
        elif content == "instances":
            true, said = (json.dumps({"1": [[number % 90, 1, 100, 50]]}) for _ in range(2))
        elif content == "findings":
            true, said = f"There is {true}.", f"There is {said}."
        elif METRICS.find(name).needs_scores:
            weights = [draws.random() for _ in CLASSES]
            scores = dict(zip(CLASSES, (weight / sum(weights) for weight in weights), strict=True))
        elif number % 10 == 0 and content == "text":
            said = f"{said} in image {number}"
        options = dict(zip("ABCD", CLASSES, strict=True)) if scores else {}
        prediction = Answer(text=said, marks=marks[1], scores=scores)
        yield prediction, Answer(text=true, marks=marks[0], group=group, options=options)


def work(name: str, rows: int, patient: int, resamples: int) -> dict[str, float]:
    """Add all answers to a metric and compute its intervals; return CPU seconds and bytes."""
    series = Series(METRICS.find(name))
    for pair in answers(name, 200, patient):  # imports
        series.add(*pair)
    series.result(2)
    series, process = Series(METRICS.find(name)), psutil.Process()
    start = time.process_time()
    for _ in answers(name, rows, patient):
        pass
    generated, memory = time.process_time() - start, process.memory_info().rss
    start = time.process_time()
    for pair in answers(name, rows, patient):
        series.add(*pair)
    added, kept = time.process_time() - start - generated, process.memory_info().rss - memory
    start = time.process_time()
    series.result(resamples)
    seconds = time.process_time() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory - kept
    return {"add": added, "kept": kept / rows, "intervals": seconds, "peak": peak}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--patient", type=int, default=4, help="rows of a patient")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    streaming = [name for name in METRICS.names() if is_streaming(METRICS.find(name)) and name not in LEFT_OUT]
    parser.add_argument("--metrics", nargs="+", default=streaming)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.result:
        result = work(options.metrics[0], options.rows, options.patient, options.resamples)
        options.result.write_text(json.dumps(result))
        return
    print(
        "| metric | add: CPU s | kept: bytes an answer | intervals: CPU s | intervals: MB more |\n|---|---|---|---|---|"
    )
    for name in options.metrics:
        arguments = [f"--{key}={vars(options)[key]}" for key in ("rows", "patient", "resamples")]
        run = in_fresh_process(__file__, [*arguments, f"--metrics={name}"], 1)
        cells = f"{run['add']:.1f} | {run['kept']:.0f} | {run['intervals']:.1f} | {max(0.0, run['peak']) / 1e6:.0f}"
        print(f"| `{name}` | {cells} |", flush=True)
    print(f"\n{options.rows:,} answers, {options.resamples:,} resamples; {machine(1)}")


if __name__ == "__main__":
    main()
