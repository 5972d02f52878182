"""Runs that are killed at random moments and resumed: each must end with the results of an uninterrupted run.

python scripts/kill.py --kills 60

Three small runs take turns: text with a validation and a test split, distillation with a cache of features, and
privacy. Each is killed with SIGKILL at a random time, just before a random operation on a file of its folder, or a
moment after one that belongs to export and evaluation, sometimes again while it resumes. Some runs get a full disk
instead: root mounts a small file system for their folder and enlarges it before they are resumed; other users get a
limit of file size. One more start has a read-only folder (for root, a read-only file system). A run fails if

* it cannot be resumed, or, without a complete checkpoint, cannot be started again
* a weight, a loss, a prediction or the privacy record differs from those of the uninterrupted run
* a temporary file or an incomplete checkpoint remains
* an error ends in a traceback

Run number N depends on the seed and N only, except for the speed of the machine. The exit code is 1 if a run failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from forked_runs import CHECKOUT, kill_at_operation, limit_file_size, record_operations, start_run

TEXT = """
_base_ = ["{checkout}/config/_base_/models/medgemma.py", "{checkout}/config/_base_/datasets/dummy.py",
          "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="{ckpt}/medgemma", lora_r=4, image_size=112, image_token_len=16, max_length=256,
                  lora_dropout=0.1)
data_args = dict(train=dict(size=6, image_size=112), validation=dict(size=2, image_size=112),
                 test=dict(size=2, image_size=112), gen_kwargs=dict(max_new_tokens=3))
training_args = dict(max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=1, logging_steps=1,
                     save_strategy="steps", save_steps=1, save_total_limit=2, eval_strategy="steps", eval_steps=2,
                     learning_rate=1e-3, warmup_steps=0, dataloader_num_workers=0, output_dir="run")
"""
DISTILLATION = """
_base_ = ["{checkout}/config/_base_/models/gemma3n_student.py", "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="{ckpt}/gemma3n-student", lora_r=4)
distill_args = dict(_delete_=True, cache_folder="cache",
                    teacher=dict(type="medsiglip", model_name_or_path="{ckpt}/medsiglip"))
objectives = dict(feature_match=dict(teacher_layers=[1, 2, 3], grid=2))
data_args = dict(train=dict(type="PhantomEchoDataset", size=6),
                 validation=dict(type="PhantomEchoDataset", size=2, seed=1),
                 test=dict(type="PhantomEchoDataset", size=2, seed=2), compute_metric="measures")
training_args = dict(num_train_epochs=2, per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1,
                     learning_rate=1e-3, warmup_steps=0, dataloader_num_workers=0, save_strategy="steps", save_steps=1,
                     eval_strategy="no", output_dir="run")
"""
PRIVACY = (
    TEXT
    + """
training_args.update(max_grad_norm=0.0, eval_strategy="no")
data_args.update(validation=None)
privacy_args = dict(noise_multiplier=0.6, target_delta=1e-2, clip_norm=0.1, physical_batch_size=2, test_noise_seed=5)
"""
)
KINDS = {"text": TEXT, "distillation": DISTILLATION, "privacy": PRIVACY}
LIMIT = 300
"""Seconds after which a run is stopped and counts as failed."""
SECOND_KILL = 0.3
"""Probability that a resumed run is killed, too."""
FULL_DISK = 0.15
"""Fraction of the runs on a full disk."""
SIZES = (15, 20)
"""Range of the limit of file size, as powers of two."""
LATE = 0.35
"""Fraction of the kills during export and evaluation."""
DELAY = 1.0
"""Maximum seconds between an operation and a kill during export and evaluation."""
TEMPORARY = re.compile(r"\.(tmp|old)-[0-9a-f]{8}$|^\.writing$")
"""Names of temporary files, and of the file that marks an incomplete checkpoint."""


@dataclass(frozen=True)
class UninterruptedRun:
    """An uninterrupted run."""

    results: dict[str, object]
    seconds: float
    operations: list[str]
    """Paths of the operations on files, in their order."""
    size: int
    """Size of the files that remain, in bytes."""

    @property
    def export(self) -> int:
        """Number of the first operation of the export."""
        folders = [Path(path).parts[:2] for path in self.operations]
        return 1 + max(number for number, parts in enumerate(folders) if parts[-1].startswith("checkpoint-"))


class FaultError(Exception):
    """Difference of a killed run from its uninterrupted run, or another failure."""


def results_of(run: Path) -> dict[str, object]:
    """Return the results of a finished run: weights, losses, predictions and the privacy record."""
    from safetensors.torch import load_file

    results: dict[str, object] = {}
    for path in sorted(run.glob("*/*.safetensors")):
        if not path.parent.name.startswith("checkpoint-"):
            tensors = load_file(path)
            name = str(path.relative_to(run))
            results |= {f"{name} {key}": tensor.numpy().tobytes() for key, tensor in tensors.items() if tensor.numel()}
    rows = json.loads((run / "training_log.json").read_text())["rows"]
    results["losses"] = [[row.get(key) for key in ("step", "loss", "eval_loss", "learning_rate")] for row in rows]
    for name in ("predictions.jsonl", "privacy.json"):
        if (run / name).is_file():
            results[name] = (run / name).read_text()
    return results


def phase_of(run: Path) -> str:
    """Return the phase of a run when it ended, determined from its files."""
    if not run.is_dir():
        return "start"
    if any(run.glob("checkpoint-*/.writing")):
        return "saving"
    if (run / "metrics.json").exists() or (run / "predictions.jsonl").exists():
        return "results"
    if (run / "adapter").exists():
        return "evaluation"
    if any(run.glob("adapter.*")) or (run / "facts.json").exists():
        return "export"
    if any(run.glob("checkpoint-*")):
        return "steps"
    return "before the first step"


class Killer:
    """Small runs in folders below `work`, each with its uninterrupted run."""

    def __init__(self, work: Path, kinds: Sequence[str]) -> None:
        from mllm.tiny.checkpoints import write_tiny

        self.work, self.phases, self.mounts = work, Counter[str](), set[Path]()
        for name in ("medgemma", "gemma3n-student", "medsiglip"):
            write_tiny(name, work / "ckpt" / name)
        self.references = {kind: self._run_uninterrupted(kind) for kind in kinds}

    def kill(self, number: int, seed: int) -> None:
        """Kill a run once or twice and finish it. Raise `FaultError` for a fault."""
        rng = np.random.default_rng([seed, number])
        kind = list(self.references)[number % len(self.references)]
        reference, folder = self.references[kind], self._new_folder(kind, str(number))
        if rng.random() < FULL_DISK:
            self._fill_disk(folder, reference, rng)
        else:
            self._kill_once(folder, reference, rng)
            if rng.random() < SECOND_KILL:
                self._kill_once(folder, reference, rng)
        if (code := self._run(folder)) != 0:
            raise FaultError(f"exit code {code} at the end: {self._error_output(folder)}")
        self._compare(folder / "run", reference)
        self._remove(folder)

    def write_protected(self, kind: str) -> None:
        """Start a run in a folder that is not writable. Raise `FaultError` unless it is refused with a message."""
        folder = self._new_folder(kind, "protected")
        (folder / "run").mkdir()
        if os.geteuid() == 0 and not self._mount(folder / "run", "ro"):
            return  # the permissions of a folder do not apply to root
        if os.geteuid() != 0:
            (folder / "run").chmod(stat.S_IRUSR | stat.S_IXUSR)
        code = self._run(folder)
        output = self._error_output(folder)
        if code != 2 or "cannot be written" not in output:
            raise FaultError(f"exit code {code} in a folder that is read-only: {output}")
        self.phases["read-only"] += 1

    def _run_uninterrupted(self, kind: str) -> UninterruptedRun:
        folder, started = self._new_folder(kind, "uninterrupted"), time.monotonic()
        record = self.work / f"{kind}.operations"
        if self._run(folder, prepare=partial(record_operations, str(record))) != 0:
            raise SystemExit(f"the uninterrupted run failed: {self._error_output(folder)}")
        seconds, paths = time.monotonic() - started, record.read_text().splitlines()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return UninterruptedRun(results_of(folder / "run"), seconds, paths, size)

    def _new_folder(self, kind: str, name: str) -> Path:
        folder = self.work / f"{kind}-{name}"
        folder.mkdir()
        (folder / "run.py").write_text(KINDS[kind].format(checkout=CHECKOUT, ckpt=self.work / "ckpt"))
        return folder

    def _fill_disk(self, folder: Path, reference: UninterruptedRun, rng: np.random.Generator) -> None:
        """Run on a full disk until the run is refused. Raise `FaultError` if it ends otherwise."""
        config, share = (folder / "run.py").read_text(), rng.uniform(0.02, 1)
        size = int(2 ** rng.uniform(*SIZES))
        if self._mount(folder, f"size={int(share * reference.size)}"):
            (folder / "run.py").write_text(config)
            name, code = "full disk", self._run(folder)
            subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)
        else:
            name, code = "limit of file size", self._run(folder, prepare=partial(limit_file_size, size))
        if code not in (0, 2):
            raise FaultError(f"exit code {code} with a {name}: {self._error_output(folder)}")
        self.phases[name] += code == 2

    def _mount(self, folder: Path, options: str) -> bool:
        """Mount an empty file system in memory at a folder. Return False for users who cannot mount."""
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        is_mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
        if is_mounted:
            self.mounts.add(folder)
        return is_mounted

    def close(self) -> None:
        """Unmount the file systems that remain."""
        for folder in self.mounts:
            subprocess.run(["umount", str(folder)], check=True)

    def _remove(self, folder: Path) -> None:
        if folder in self.mounts:
            subprocess.run(["umount", str(folder)], check=True)
            self.mounts.remove(folder)
        shutil.rmtree(folder)

    def _kill_once(self, folder: Path, reference: UninterruptedRun, rng: np.random.Generator) -> None:
        """Kill a run at a random time, before a random operation on a file, or during export and evaluation."""
        operations = len(reference.operations)
        if rng.random() < LATE:
            number, delay = int(rng.integers(reference.export + 1, operations + 1)), float(rng.uniform(0, DELAY))
            code = self._run(folder, prepare=partial(kill_at_operation, number, delay))
        elif rng.random() < 0.5:
            code = self._run(folder, seconds=rng.uniform(0, reference.seconds))
        else:
            code = self._run(folder, prepare=partial(kill_at_operation, int(rng.integers(1, operations + 1)), 0.0))
        if code == -9:
            self.phases[phase_of(folder / "run")] += 1
        elif code != 0:
            raise FaultError(f"exit code {code} instead of a kill: {self._error_output(folder)}")

    def _run(self, folder: Path, seconds: float = LIMIT, prepare: Callable[[], None] | None = None) -> int:
        """Start or resume the run of a folder, kill it after some seconds, and return its exit code."""
        from mllm.engine.checkpoints import newest_checkpoint

        run, arguments = folder / "run", ["finetune.py", "run.py"]
        if newest_checkpoint(run) is not None:
            arguments.append("--resume")
        elif any(run.glob("checkpoint-*")) or (run / "training_log.json").exists():
            shutil.rmtree(run)  # as a user has to, because the command refuses a folder that is not empty
        process = start_run(arguments, folder, folder / "log", {}, prepare)
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
        assert process.exitcode is not None
        return process.exitcode

    def _compare(self, run: Path, reference: UninterruptedRun) -> None:
        """Raise `FaultError` if results differ from those of the uninterrupted run, or something incomplete remains."""
        results = results_of(run)
        for name in results.keys() | reference.results.keys():
            if results.get(name) != reference.results.get(name):
                raise FaultError(f"{name} differs from the uninterrupted run")
        if remaining := [str(path) for path in run.rglob("*") if TEMPORARY.search(path.name)]:
            raise FaultError(f"{remaining[0]} remains")

    def _error_output(self, folder: Path) -> str:
        lines = (folder / "log.err").read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-6:])


def main(argv: Sequence[str] | None = None) -> int:
    """Kill runs and print what they were doing, with the faults. Return 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="number of runs to kill (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times of the kills (default: 0)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of runs (default: all)")
    parser.add_argument("--minutes", type=float, default=600, help="start no run after this time (default: 600)")
    args = parser.parse_args(argv)
    started, finished, faults = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as work:
        killer = Killer(Path(work), args.kinds)
        tasks: dict[str, Callable[[], object]] = {
            "read-only folder": partial(killer.write_protected, args.kinds[0]),
            **{f"run {number}": partial(killer.kill, number, args.seed) for number in range(args.kills)},
        }
        for name, task in tasks.items():
            if time.monotonic() - started > 60 * args.minutes:
                break
            try:
                task()
                finished += 1
            except FaultError as fault:
                faults += 1
                print(f"{name}: {fault}", flush=True)
        killer.close()
    print(f"{finished} runs ended like uninterrupted ones, {faults} did not\n")
    print("| interrupted | times |\n|---|---|")
    for phase, times in sorted(killer.phases.items()):
        print(f"| {phase} | {times} |")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
