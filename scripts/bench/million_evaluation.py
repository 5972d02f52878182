"""Benchmark of the whole command `mllm evaluate` on a million rows that have predictions: CPU seconds and memory.

    python scripts/bench/million_evaluation.py --rows 10000 100000 1000000

A killed evaluation has answered all rows. A tiny random model continues it: the command opens and checks the data,
reads the predictions, computes figures, intervals and strata, and writes the report. Then `mllm report` writes the
report again, and `mllm compare` compares the evaluation with itself. Each number of rows has a process of its own.
README.md has the figures.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from interleaved import in_fresh_process, machine, sampled_memory
from row_check import anonymous
from row_check_work import Pictures

CHECKOUT = Path(__file__).resolve().parents[2]
CLASSES = ("no finding", "edema", "pneumonia", "effusion")
QUESTIONS = ("What is shown?", "What is the main finding?", "Which disease is seen?", "What is abnormal?")
SITES = 300
"""Number of values of the column `site`."""
CONFIG = """
_base_ = ["{checkout}/config/_base_/models/medgemma.py", "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="{model}", image_size=112, image_token_len=16, max_length=256)
data_args = dict(test=dict(type="VQADataset", data_path="{data}"), vision_cache=False, compute_metric={metrics},
                 gen_kwargs=dict(max_new_tokens=6))
"""
"""Config of the evaluation. Without `vision_cache=False` the image of each row would be decoded once more."""


def write_rows(folder: Path, rows: int, patient: int, variety: str) -> None:
    """Write the data and the predictions of a killed evaluation, in which a tenth of the answers are unique.

    Args:
        folder: Folder of the data, in which the evaluation has the folder `out`.
        rows: Number of rows.
        patient: Number of rows of a patient, which have one image.
        variety: 'classes': few different references; 'texts': each row has its own; 'numbers': each is a number.
    """
    draws, pictures = random.Random(0), Pictures(folder, size=(32, 32))
    (folder / "out").mkdir()
    table, image = [], ""
    with (folder / "out" / "predictions.unfinished-0.jsonl").open("w") as file:
        for number in range(rows):
            name, site = f"P{number // patient:07}", f"site {number // patient * 7 % SITES}"
            image = image if number % patient else pictures.numbered(number // patient)
            true, said = draws.choice(CLASSES), draws.choice(CLASSES)
            if variety == "numbers":
                true, said = (f"{draws.gauss(55, 10):.3f}" for _ in range(2))
            elif variety == "texts":
                true, said = f"{true} in image {number}", f"{said} in image {number}"
            elif number % 10 == 0:
                said = f"{said} in image {number}"
            row = {"patient": name, "question": QUESTIONS[number % 4]}
            columns = {"sex": "FM"[number // patient % 2], "age": 20 + number // patient % 60, "site": site}
            table.append(json.dumps({"image": image, **row, "answer": true, **columns}))
            source = {"source": f"{folder / 'rows.jsonl'}, line {number + 1}", "images": [str(folder / image)]}
            answer = {"reference": true, "prediction": said, "tokens": 5}
            print(json.dumps({"index": number, "row": {**source, **row, **answer}}), file=file)
    (folder / "rows.jsonl").write_text("\n".join(table) + "\n")


class Steps:
    """Measurement of functions: CPU seconds of each, and the largest anonymous memory so far in megabytes."""

    def __init__(self, read_peak: Callable[[], int]) -> None:
        self.read_peak = read_peak
        self.values: dict[str, list[float]] = {}

    def call(self, name: str, function: Callable[[], Any]) -> Any:
        """Call and measure a function."""
        started = time.process_time()
        result = function()
        self.values[name] = [time.process_time() - started, self.read_peak() / 1e6]
        return result

    def watch(self, module: ModuleType, names: Sequence[str]) -> None:
        """Measure all calls of functions of a module."""
        for name in names:
            function = vars(module)[name]

            @functools.wraps(function)
            def measured(*args: Any, _name: str = name, _function: Any = function, **options: Any) -> Any:
                return self.call(_name, lambda: _function(*args, **options))

            setattr(module, name, measured)


def work(rows: int, patient: int, variety: str, metrics: Sequence[str], by: Sequence[str]) -> dict[str, list[float]]:
    """Write the data, run the commands, and return CPU seconds and megabytes of each step."""
    from mllm.pipeline import evaluate_model
    from mllm.predict import evaluate
    from mllm.report.compare import compare, comparison_table
    from mllm.run.report import rewrite_report
    from mllm.tiny.checkpoints import write_tiny

    steps = ("open_split", "check_columns", "_source", "open_files", "question_groups", "answer_split", "score_split")
    steps += ("add_strata", "write_predictions", "write_challenge_files", "write_report")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        model = write_tiny("medgemma", folder / "model")
        pid = os.fork()  # the memory of the generator is not that of the command
        if not pid:
            write_rows(folder, rows, patient, variety)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            sys.exit("the rows could not be written")
        values = {"checkout": CHECKOUT, "model": model, "data": folder / "rows.jsonl", "metrics": list(metrics)}
        (folder / "run.py").write_text(CONFIG.format(**values))
        with sampled_memory(anonymous) as peak:
            measured = Steps(lambda: peak.bytes)
            measured.call("imports", lambda: None)
            measured.watch(evaluate, steps)
            arguments = ["run.py", "--model", str(model), "--out", "out", *(["--by", *by] if by else [])]
            measured.call("evaluate", lambda: evaluate_model.main(arguments))
            out = folder / "out"
            peak.bytes = anonymous()
            measured.call("report", lambda: rewrite_report(out))
            peak.bytes = anonymous()
            measured.call("compare", lambda: print(comparison_table(compare([out, out], by=by))))
        return measured.values | {"report.html": [0, (out / "report.html").stat().st_size / 1e6]}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--patient", type=int, default=4, help="rows of a patient")
    parser.add_argument("--variety", choices=("classes", "texts", "numbers"), default="classes", help="references")
    parser.add_argument("--metrics", nargs="+", default=["accuracy", "balanced_accuracy"])
    parser.add_argument("--by", nargs="*", default=["sex", "age", "site"], help="columns of the strata")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.result:
        result = work(options.rows[0], options.patient, options.variety, options.metrics, options.by)
        options.result.write_text(json.dumps(result))
        return
    fixed = [f"--patient={options.patient}", f"--variety={options.variety}", "--metrics", *options.metrics]
    print("| rows | step | CPU s | peak: MB |\n|---|---|---|---|")
    for rows in options.rows:
        run = in_fresh_process(__file__, [f"--rows={rows}", *fixed, "--by", *options.by], 1)
        for step, values in run.items():
            print(f"| {rows:,} | {step} | {' | '.join(f'{value:.1f}' for value in values)} |", flush=True)
    print(f"\n{', '.join(options.metrics)}; {machine(1)}")


if __name__ == "__main__":
    main()
