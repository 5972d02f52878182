"""What a teacher is worth to a student with few labels: errors of EF and volumes, alone and with FeatureMatch.

A tiny SigLIP learns to read many generated hearts; a tiny MobileNet-v5 then reads few, with equally many updates in
every way: alone, matched to the teacher's mean features or to those at 4 x 4 places, and so with half of every batch
from hearts without labels.
distillation_work.py is one run, in a process of its own. README.md has the figures.
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
    "pooled-unlabelled": "matched, grid=1, also on hearts without labels",
    "grid-unlabelled": "matched, grid=4, also on hearts without labels",
}
UNITS = {"EF": "points", "EDV": "mL", "ESV": "mL"}
TRIED = {way: ((1e-3, 0.0), (2e-3, 0.0)) if way == "alone" else ((1e-3, 1.0), (2e-3, 3.0)) for way in NAMES}
"""The pairs of learning rate and weight of FeatureMatch that `--choose` tries, as many for each way."""
CHOSEN = {way: tried[1] for way, tried in TRIED.items()}
"""Each way's pair, as `--choose` found it."""
CHOOSING = (900, 901, 902)
"""The seeds of the students that are only tried."""
RESAMPLES = 4000


def run(way: str, seed: int, setting: tuple[float, float], judged: str, options: argparse.Namespace) -> dict[str, Any]:
    """What one student came to, or the teacher; printed as soon as it is there."""
    is_teacher = way == "teacher"
    arguments = {
        "way": way,
        "seed": seed,
        "rate": setting[0],
        "weight": setting[1],
        "judged": judged,
        "judged-hearts": options.held_out,
        "steps": options.teacher_steps if is_teacher else options.steps,
        "labelled": options.teacher_hearts if is_teacher else options.labelled,
        "unlabelled": options.unlabelled,
        "threads": options.threads,
        "folder": options.folder,
    }
    if not is_teacher:
        arguments["teacher"] = options.teacher
    for line in options.out.read_text().splitlines() if options.out and options.out.is_file() else ():
        kept: dict[str, Any] = json.loads(line)
        if kept["arguments"] == {name: str(value) for name, value in arguments.items()}:
            return kept
    script = str(Path(__file__).with_name("distillation_work.py"))
    found = in_fresh_process(script, [f"--{name}={value}" for name, value in arguments.items()], options.threads)
    errors = ", ".join(f"{name} {np.mean(np.abs(values)):.2f}" for name, values in found["errors"].items())
    first, last = found["losses"][0], found["losses"][-1]
    told = ", ".join(f"{name} {first[name]:.3f} to {last[name]:.3f}" for name in last)
    print(f"{way}, seed {seed}, rate {setting[0]:g}, weight {setting[1]:g}: {judged} MAE {errors}; {told}", flush=True)
    found["arguments"] = {name: str(value) for name, value in arguments.items()}
    if options.out:
        with options.out.open("a") as file:
            file.write(json.dumps(found) + "\n")
    return found


def choose(ways: Sequence[str], options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Each way's pair of those in `TRIED` with the least mean MAE of EF on validation hearts, over a few students."""
    jobs = [(way, seed, pair, "validation", options) for way in ways for pair in TRIED[way] for seed in CHOOSING]
    errors = [np.abs(one["errors"]["EF"]).mean() for one in run_all(jobs, options.at_once)]
    best = {}
    for way in ways:
        own = [(job[2], error) for job, error in zip(jobs, errors, strict=True) if job[0] == way]
        scores = {pair: float(np.mean([error for other, error in own if other == pair])) for pair in TRIED[way]}
        print(f"{way}, validation MAE of EF by rate and weight: {scores}", flush=True)
        best[way] = min(scores, key=scores.__getitem__)
    print(f"chosen: {best}", flush=True)
    return best


def run_all(jobs: Sequence[tuple[Any, ...]], at_once: int) -> list[dict[str, Any]]:
    """What `run` gives for the arguments of each job, in order, some of them side by side."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda job: run(*job), jobs))


def table(errors: dict[str, dict[str, np.ndarray]]) -> str:
    """A Markdown table of mean absolute errors, `errors[way][measure]` being [seeds, patients].

    In brackets the 95 % interval of a bootstrap that draws seeds and patients, the same for all ways; the last column
    is what each way's mean absolute error has more than the first way's.
    """
    ways, measures = list(errors), list(UNITS)
    lines = [
        "| | " + " | ".join(f"MAE of {name}, {UNITS[name]}" for name in measures) + " | EF against the first, points |",
        "|---" * (len(measures) + 2) + "|",
    ]
    for way in ways:
        cells = [interval(np.abs(errors[way][name])) for name in measures]
        gained = np.abs(errors[way]["EF"]) - np.abs(errors[ways[0]]["EF"])
        cells.append("" if way == ways[0] else interval(gained, "+"))
        lines.append(f"| {NAMES[way]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(values: np.ndarray, sign: str = "") -> str:
    """`mean [low, high]` of values [seeds, patients]."""
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
    parser.add_argument("--labelled", type=int, default=32, help="patients with labels that a student sees")
    parser.add_argument("--unlabelled", type=int, default=512, help="patients without labels, in the last two ways")
    parser.add_argument("--teacher-hearts", type=int, default=2048)
    parser.add_argument("--teacher-steps", type=int, default=3000)
    parser.add_argument("--teacher", type=Path, help="a teacher that was trained before")
    parser.add_argument("--held-out", type=int, default=128, help="patients by whom all are judged")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side")
    parser.add_argument("--ways", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--choose", action="store_true", help="choose rate and weight on validation hearts first")
    parser.add_argument("--folder", type=Path, help="for what is written; without it a temporary one")
    parser.add_argument("--out", type=Path, help="JSON lines, one for each run; those that are there are not run again")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        if options.teacher is None:
            options.teacher = run("teacher", 0, (1e-3, 0.0), "held-out", options)["student"]
            print(f"the teacher lies in {options.teacher}", flush=True)
        settings = choose(options.ways, options) if options.choose else CHOSEN
        jobs = [
            (way, seed, settings[way], "held-out", options) for seed in range(options.seeds) for way in options.ways
        ]
        found = run_all(jobs, options.at_once)
    errors = {
        way: {
            name: np.array([one["errors"][name] for job, one in zip(jobs, found, strict=True) if job[0] == way])
            for name in UNITS
        }
        for way in options.ways
    }
    versions = ", ".join(" ".join(pair) for pair in installed(["torch", "transformers", "timm"]).items())
    print(f"\n{table(errors)}\n\n{options.at_once} runs at once, each: {machine(options.threads)}; {versions}")


if __name__ == "__main__":
    main()
