"""Benchmark of the evaluation of a million predictions: CPU seconds and memory of each step, and of each metric.

    python scripts/bench/million.py
    python scripts/bench/million.py --alone --metrics accuracy mae auroc

Predictions are generated, and scored, written, shown and compared in a process of its own for each number of rows.
With `--alone` each metric, or all, reads them one by one in a process of its own. README.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import numpy as np
import psutil
from interleaved import in_fresh_process, machine

from mllm.engine.evaluation import score_split
from mllm.engine.strata import Column, stratified
from mllm.engine.unfinished import UnfinishedPredictions
from mllm.files import json_line, write_json
from mllm.metrics.base import REPORT, content_read
from mllm.metrics.bootstrap import RESAMPLES
from mllm.metrics.scoring import Series, is_streaming, tasks_of
from mllm.predict.metrics import find_metrics
from mllm.predict.writer import write_predictions
from mllm.registry import METRICS
from mllm.report.compare import compare
from mllm.report.run.page import write_report
from mllm.structures import Answer, Mark

CLASSES = ("no finding", "edema", "pneumonia", "effusion")
WORDS = tuple(f"word{number}" for number in range(2000))
REPEATED = list(accumulate(1 / (1 + number) for number in range(len(WORDS))))
"""Cumulative weights of the words: the word at place n is as frequent as 1 / n (Zipf)."""
PART = 1000
"""Number of answers that are generated before they are added to a metric."""


MASKS = tuple(np.indices((24, 24)).sum(axis=0) % 13 > end for end in (3, 5))


def answers(name: str, rows: int, patient: int) -> Iterator[tuple[Answer, Answer]]:
    """Yield prediction and reference of each row for a metric; `patient` rows have one patient.

    A tenth of the rows has an answer of its own, nine in ten are of a few classes. Reports have 15 words.
    """
    draws, content = random.Random(0), content_read(METRICS.find(name))
    for number in range(rows):
        group = f"P{number // patient:07}"
        true, said = draws.choice(CLASSES), draws.choice(CLASSES)
        scores: dict[str, float] = {}
        marks: tuple[list[Mark], list[Mark]] = [], []
        if tasks_of(METRICS.find(name)) == {REPORT}:
            true = " ".join(draws.choices(WORDS, cum_weights=REPEATED, k=15))
            said = " ".join([*true.split()[: draws.randrange(15)], *draws.choices(WORDS, cum_weights=REPEATED, k=5)])
        elif content == "mask":
            marks = [Mark(mask=MASKS[number % 2])], [Mark(mask=MASKS[0])]
            true = said = "<mask>"
        elif content in ("number", "measures"):
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


def alone(name: str, rows: int, patient: int, resamples: int) -> dict[str, float]:
    """Add all answers to a metric and compute its intervals; return CPU seconds and megabytes."""
    series = Series(METRICS.find(name))
    for pair in answers(name, 200, patient):  # imports
        series.add(*pair)
    series.result(2)
    series, memory = Series(METRICS.find(name)), psutil.Process().memory_info().rss
    added, pairs = 0.0, answers(name, rows, patient)
    while part := list(islice(pairs, PART)):
        start = time.process_time()
        for pair in part:
            series.add(*pair)
        added += time.process_time() - start
    kept = psutil.Process().memory_info().rss - memory
    start = time.process_time()
    series.result(resamples)
    return {"add": added, "kept": kept / 1e6, "intervals": time.process_time() - start, "peak": peak(memory)}


def peak(memory: int) -> float:
    """Return the growth of the largest memory of this process in megabytes."""
    return max(0.0, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1e6


def without_java() -> set[str]:
    """Return the metrics that cannot be computed, because Java is not installed."""
    return set() if shutil.which("java") else {"meteor"}


class Split:
    """Rows of a split, which have answers already."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows


def whole(names: Sequence[str], rows: int, patient: int) -> dict[str, list[float]]:
    """Score, write, show and compare predictions; return CPU seconds and megabytes after each step."""
    result: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "predictions.unfinished-0.jsonl").open("w") as file:
            for number, (prediction, reference) in enumerate(answers(names[0], rows, patient)):
                row = {"source": f"rows.jsonl, line {number + 1}", "patient": reference.group, "question": "Which one?"}
                row |= {"reference": reference.text, "prediction": prediction.text, "tokens": 5}
                row |= {"columns": {"sex": "FM"[number // patient % 2], "age": 20 + number // patient % 60}}
                file.write(json_line({"index": number, "row": row}))
        metrics, memory = find_metrics(names), psutil.Process().memory_info().rss

        def step(name: str, function: Callable[[], Any]) -> Any:
            start = time.process_time()
            value = function()
            result[name] = [time.process_time() - start, peak(memory)]
            return value

        files = UnfinishedPredictions(folder, {})
        evaluation = step("score", lambda: score_split(Split(rows), files, metrics))
        step("strata of 2 columns", lambda: stratified(evaluation.rows, metrics, [Column("sex"), Column("age")]))
        step("write", lambda: write_predictions(folder / "predictions.jsonl", evaluation.rows))
        write_json(folder / "metrics.json", {"figures": evaluation.figures, "settings": {"split": "test"}})
        step("report", lambda: write_report(folder, dict))
        step("compare", lambda: compare([folder, folder]))
        result["report.html: MB"] = [(folder / "report.html").stat().st_size / 1e6]
    return result


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--alone", action="store_true", help="measure each metric alone")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--patient", type=int, default=4, help="rows of a patient")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="bootstrap samples of a metric alone")
    parser.add_argument("--metrics", nargs="+", help="metrics (default: two of classes, or with --alone all)")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    streaming = [name for name in METRICS.names() if is_streaming(METRICS.find(name)) and name not in without_java()]
    names = options.metrics or (streaming if options.alone else ["accuracy", "balanced_accuracy"])
    if options.result:
        rows, patient = options.rows[0], options.patient
        result = alone(names[0], rows, patient, options.resamples) if options.alone else whole(names, rows, patient)
        options.result.write_text(json.dumps(result))
        return
    fixed = [f"--patient={options.patient}", f"--resamples={options.resamples}"]
    if options.alone:
        print("| metric | rows | add: CPU s | kept: MB | intervals: CPU s | peak: MB |\n|---|---|---|---|---|---|")
        for name in names:
            for rows in options.rows:
                run = in_fresh_process(__file__, [*fixed, "--alone", f"--rows={rows}", f"--metrics={name}"], 1)
                cells = (f"{run['add']:.1f}", f"{run['kept']:.0f}", f"{run['intervals']:.1f}", f"{run['peak']:.0f}")
                print(f"| `{name}` | {rows:,} | {' | '.join(cells)} |", flush=True)
    else:
        print("| rows | step | CPU s | peak: MB |\n|---|---|---|---|")
        for rows in options.rows:
            run = in_fresh_process(__file__, [*fixed, f"--rows={rows}", "--metrics", *names], 1)
            for step, values in run.items():
                print(f"| {rows:,} | {step} | {' | '.join(f'{value:.1f}' for value in values)} |", flush=True)
    print(f"\n{', '.join(names)}; {machine(1)}")


if __name__ == "__main__":
    main()
