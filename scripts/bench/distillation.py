"""Benchmark of distillation with few labels: errors of EF and volumes, with and without FeatureMatch.

A tiny SigLIP is trained on many generated hearts. A tiny MobileNet-v5 is then trained on few hearts, with the same
number of updates for each method: alone, matched to the teacher's mean features or to those at 4 x 4 positions, and
both with half of each batch from unlabeled hearts. distillation_work.py is one run in its own process. README.md has
the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from interleaved import in_fresh_process, machine

from mllm.config.hardware import installed

NAMES = {
    "alone": "student alone",
    "pooled": "matched, grid=1",
    "grid": "matched, grid=4",
    "pooled-unlabeled": "matched, grid=1, also with unlabeled hearts",
    "grid-unlabeled": "matched, grid=4, also with unlabeled hearts",
}
UNITS = {"EF": "points", "EDV": "mL", "ESV": "mL"}
CANDIDATES = {
    method: ((1e-3, 0.0), (2e-3, 0.0)) if method == "alone" else ((1e-3, 1.0), (2e-3, 3.0)) for method in NAMES
}
"""Pairs of learning rate and weight of FeatureMatch that `--choose` compares for each method."""
SELECTED = {method: pairs[1] for method, pairs in CANDIDATES.items()}
"""Pair of each method that `--choose` selected."""
SELECTION_SEEDS = (900, 901, 902)
"""Seeds of the students of `--choose`."""
RESAMPLES = 4000
"""Number of bootstrap samples."""


def run(
    method: str, seed: int, setting: tuple[float, float], split: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the results of one student or the teacher, and print them. Results in `--out` are not computed again."""
    is_teacher = method == "teacher"
    arguments = {
        "method": method,
        "seed": seed,
        "rate": setting[0],
        "weight": setting[1],
        "split": split,
        "test-hearts": options.held_out,
        "steps": options.teacher_steps if is_teacher else options.steps,
        "labeled": options.teacher_hearts if is_teacher else options.labeled,
        "unlabeled": options.unlabeled,
        "threads": options.threads,
        "folder": options.folder,
    }
    if not is_teacher:
        arguments["teacher"] = options.teacher
    for line in options.out.read_text().splitlines() if options.out and options.out.is_file() else ():
        saved: dict[str, Any] = json.loads(line)
        if saved["arguments"] == {name: str(value) for name, value in arguments.items()}:
            return saved
    script = str(Path(__file__).with_name("distillation_work.py"))
    result = in_fresh_process(script, [f"--{name}={value}" for name, value in arguments.items()], options.threads)
    errors = ", ".join(f"{name} {np.mean(np.abs(values)):.2f}" for name, values in result["errors"].items())
    first, last = result["losses"][0], result["losses"][-1]
    losses = ", ".join(f"{name} {first[name]:.3f} to {last[name]:.3f}" for name in last)
    print(
        f"{method}, seed {seed}, rate {setting[0]:g}, weight {setting[1]:g}: {split} MAE {errors}; {losses}", flush=True
    )
    result["arguments"] = {name: str(value) for name, value in arguments.items()}
    if options.out:
        with options.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
    return result


def choose(methods: Sequence[str], options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Return the pair of each method with the lowest mean MAE of EF on validation hearts."""
    jobs = [
        (method, seed, pair, "validation", options)
        for method in methods
        for pair in CANDIDATES[method]
        for seed in SELECTION_SEEDS
    ]
    errors = [np.abs(result["errors"]["EF"]).mean() for result in run_all(jobs, options.parallel)]
    best = {}
    for method in methods:
        scored = [(job[2], error) for job, error in zip(jobs, errors, strict=True) if job[0] == method]
        scores = {
            pair: float(np.mean([error for other, error in scored if other == pair])) for pair in CANDIDATES[method]
        }
        print(f"{method}, validation MAE of EF by rate and weight: {scores}", flush=True)
        best[method] = min(scores, key=scores.__getitem__)
    print(f"selected: {best}", flush=True)
    return best


def run_all(jobs: Sequence[tuple[Any, ...]], parallel: int) -> list[dict[str, Any]]:
    """Return the results of `run` for the arguments of each job in order; at most `parallel` at the same time."""
    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(lambda job: run(*job), jobs))


def table(errors: dict[str, dict[str, np.ndarray]]) -> str:
    """Return a Markdown table of mean absolute errors; `errors[method][measure]` has the shape [seeds, patients].

    In brackets is the 95 % interval of a bootstrap over seeds and patients, which are the same for all methods. The
    last column is the difference of the mean absolute error from that of the first method.
    """
    methods, measures = list(errors), list(UNITS)
    header = " | ".join(f"MAE of {name}, {UNITS[name]}" for name in measures)
    lines = [
        f"| | {header} | difference in EF from the first row, points |",
        "|---" * (len(measures) + 2) + "|",
    ]
    for method in methods:
        cells = [interval(np.abs(errors[method][name])) for name in measures]
        difference = np.abs(errors[method]["EF"]) - np.abs(errors[methods[0]]["EF"])
        cells.append("" if method == methods[0] else interval(difference, "+"))
        lines.append(f"| {NAMES[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(values: np.ndarray, sign: str = "") -> str:
    """Return `mean [low, high]` of values [seeds, patients] with the 95 % interval of a bootstrap."""
    rng = np.random.default_rng(0)
    seeds, patients = values.shape
    means = [
        values[rng.integers(seeds, size=seeds)][:, rng.integers(patients, size=patients)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{values.mean():{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="updates of a student, of 16 patients each")
    parser.add_argument("--labeled", type=int, default=32, help="labeled patients of a student")
    parser.add_argument("--unlabeled", type=int, default=512, help="unlabeled patients of the last two methods")
    parser.add_argument("--teacher-hearts", type=int, default=2048)
    parser.add_argument("--teacher-steps", type=int, default=3000)
    parser.add_argument("--teacher", type=Path, help="folder of a trained teacher")
    parser.add_argument("--held-out", type=int, default=128, help="held-out patients")
    parser.add_argument("--threads", type=int, default=1, help="threads per run")
    parser.add_argument("--parallel", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--choose", action="store_true", help="select rate and weight on validation hearts first")
    parser.add_argument("--folder", type=Path, help="output folder (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="JSON lines file with one line per run; runs in it are not repeated")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        if options.teacher is None:
            options.teacher = run("teacher", 0, (1e-3, 0.0), "held-out", options)["student"]
            print(f"teacher: {options.teacher}", flush=True)
        settings = choose(options.methods, options) if options.choose else SELECTED
        jobs = [
            (method, seed, settings[method], "held-out", options)
            for seed in range(options.seeds)
            for method in options.methods
        ]
        results = run_all(jobs, options.parallel)
    errors = {
        method: {
            name: np.array(
                [result["errors"][name] for job, result in zip(jobs, results, strict=True) if job[0] == method]
            )
            for name in UNITS
        }
        for method in options.methods
    }
    versions = ", ".join(" ".join(pair) for pair in installed(["torch", "transformers", "timm"]).items())
    print(f"\n{table(errors)}\n\n{options.parallel} parallel runs, each: {machine(options.threads)}; {versions}")


if __name__ == "__main__":
    main()
