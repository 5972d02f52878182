"""Random interruptions of evaluations: each continued evaluation must end with the files of an uninterrupted one.

python scripts/kill_evaluation.py --kills 10

A tiny model is evaluated on generated questions. SIGKILL ends the process when the file of unfinished predictions has a
random size, or at a random time; the same command then continues the evaluation. It fails if predictions or figures
differ from those of the uninterrupted evaluation, or if a file of unfinished predictions remains. The exit code is 1 if
an evaluation failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from forked_runs import CHECKOUT, start_run

CONFIG = """
_base_ = ["{checkout}/config/_base_/models/medgemma.py", "{checkout}/config/_base_/datasets/dummy.py",
          "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="{base}", image_size=112, image_token_len=16, max_length=256)
data_args = dict(test=dict(size={rows}, image_size=112),
                 gen_kwargs=dict(max_new_tokens=6, batch_size=2, do_sample=True, temperature=20.0))
"""
TIME_LIMIT = 300
"""Seconds after which an evaluation is ended."""
AT_A_TIME = 0.3
"""Probability that the kill is at a random time instead of a random size of the file."""


@dataclass(frozen=True)
class Ended:
    """End of a process that evaluates."""

    code: int
    seconds: float


class Evaluations:
    """Evaluations in folders of their own.

    Args:
        work: Folder of the evaluations.
        rows: Number of questions.
    """

    def __init__(self, work: Path, rows: int) -> None:
        from mllm.tiny.checkpoints import write_tiny

        self.work, self.rows = work, rows
        self.base = write_tiny("medgemma", work / "base")
        self.ended = self.run(self.folder("uninterrupted"))
        if self.ended.code:
            raise SystemExit(f"the uninterrupted evaluation failed: {self.error(self.folder('uninterrupted'))}")
        self.expected = results_of(self.folder("uninterrupted") / "out")

    def folder(self, name: str) -> Path:
        """Return the folder of an evaluation, with its config."""
        folder = self.work / name
        folder.mkdir(exist_ok=True)
        (folder / "run.py").write_text(CONFIG.format(checkout=CHECKOUT, base=self.base, rows=self.rows))
        return folder

    def run(self, folder: Path, size: int | None = None, seconds: float = TIME_LIMIT) -> Ended:
        """Start or continue the evaluation of a folder, and kill it at a size of the file or after some seconds."""
        arguments = ["evaluate_model.py", "run.py", "--model", str(self.base), "--metric", "accuracy", "--out", "out"]
        started, file = time.monotonic(), folder / "out" / "predictions.unfinished-0.jsonl"
        process = start_run(arguments, folder, folder / "log", {})
        while process.is_alive():
            is_large = size is not None and file.is_file() and file.stat().st_size >= size
            if is_large or time.monotonic() - started > seconds:
                process.kill()
            process.join(0.002)
        assert process.exitcode is not None
        return Ended(process.exitcode, time.monotonic() - started)

    def interrupt(self, number: int, seed: int) -> str | None:
        """Kill an evaluation once to three times, finish it, and return its difference; None if it is equal."""
        rng, folder = np.random.default_rng([seed, number]), self.folder(str(number))
        kills = 0
        for _ in range(int(rng.integers(1, 4))):
            if rng.random() < AT_A_TIME:
                ended = self.run(folder, seconds=rng.uniform(0, self.ended.seconds))
            else:
                ended = self.run(folder, size=int(rng.integers(1, len(self.expected["predictions"]))))
            if ended.code not in (0, -9):
                return f"exit code {ended.code} instead of a kill: {self.error(folder)}"
            if ended.code == 0:
                break
            kills += 1
        if ended.code and (code := self.run(folder).code):
            return f"exit code {code} at the end: {self.error(folder)}"
        results = results_of(folder / "out")
        print(f"evaluation {number}: {kills} kills, {results['continued']} rows were kept at the last one", flush=True)
        return next(
            (f"{key} differ" for key in ("predictions", "figures", "files") if results[key] != self.expected[key]), None
        )

    def error(self, folder: Path) -> str:
        """Return the last lines of the error output."""
        return " / ".join((folder / "log.err").read_text(errors="replace").strip().splitlines()[-6:])


def results_of(out: Path) -> dict[str, object]:
    """Return the predictions, the figures, the names of the files, and the number of rows that were continued."""
    values = json.loads((out / "metrics.json").read_text())
    return {
        "predictions": (out / "predictions.jsonl").read_text(),
        "figures": values["figures"],
        "files": sorted(path.name for path in out.iterdir()),
        "continued": values["counts"].get("continued", 0),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Interrupt evaluations and print the failed ones. Return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="number of evaluations to interrupt (default: 10)")
    parser.add_argument("--rows", type=int, default=60, help="number of questions (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the interruptions (default: 0)")
    args = parser.parse_args(argv)
    failed = 0
    with tempfile.TemporaryDirectory() as work:
        evaluations = Evaluations(Path(work), args.rows)
        for number in range(args.kills):
            if difference := evaluations.interrupt(number, args.seed):
                failed += 1
                print(f"evaluation {number}: {difference}", flush=True)
    print(f"{args.kills - failed} evaluations ended like the uninterrupted one, {failed} did not")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
