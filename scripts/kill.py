"""Random interruptions of small runs: each resumed run must end with the results of an uninterrupted run.

python scripts/kill.py --kills 60

There are three kinds of small runs, used in turn: text with a validation and a test split, distillation with a feature
cache, and private training. Each run is interrupted in one of these ways, sometimes twice:

* SIGKILL at a random time
* SIGKILL before a random operation on a file of its folder
* SIGKILL up to a second after such an operation of the export or the evaluation
* a full disk: as root, a small mounted file system, which is enlarged before the run is resumed; as another user, a
  limit of file size

One more run starts in a read-only folder (as root, a read-only file system). A run fails if

* it cannot be resumed, or, without a complete checkpoint, cannot be started again
* a weight, loss, prediction or privacy record differs from that of the uninterrupted run
* a temporary file or an incomplete checkpoint remains
* the exit code is that of an unexpected error

The interruption of run number N depends only on the seed, N and the speed of the machine. The exit code is 1 if
a run failed.
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
TIME_LIMIT = 300
"""Seconds after which a run is killed."""
SECOND_KILL = 0.3
"""Probability that a resumed run is killed again."""
FULL_DISK = 0.15
"""Probability that a run gets a full disk."""
FILE_SIZE_LIMITS = (15, 20)
"""Range of the limit of file size: binary logarithms of bytes."""
KILL_AFTER_TRAINING = 0.35
"""Probability that a kill is in the export or the evaluation."""
MAX_DELAY = 1.0
"""Maximum seconds between an operation of the export or the evaluation and the kill."""
TEMPORARY = re.compile(r"\.(tmp|old)-[0-9a-f]{8}$|^\.writing$")
"""Names of temporary files, and of the file that marks an incomplete checkpoint."""


@dataclass(frozen=True)
class UninterruptedRun:
    """Results and course of an uninterrupted run."""

    results: dict[str, object]
    """See `results_of`."""
    seconds: float
    """Duration."""
    operations: list[str]
    """Path of each operation that changed a file, relative to the folder, in their order."""
    size: int
    """Total size of the files at the end, in bytes."""

    @property
    def export(self) -> int:
        """Number of the first operation of the export, from 0."""
        folders = [Path(path).parts[:2] for path in self.operations]
        return 1 + max(number for number, parts in enumerate(folders) if parts[-1].startswith("checkpoint-"))


class FailedRunError(Exception):
    """Difference of a run from its uninterrupted run, or another failure of it."""


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


class MountedDisks:
    """File systems in memory that are mounted at folders."""

    def __init__(self) -> None:
        self.folders: set[Path] = set()

    def mount(self, folder: Path, options: str) -> bool:
        """Mount an empty file system at a folder. Return False for users who cannot mount."""
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        is_mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
        if is_mounted:
            self.folders.add(folder)
        return is_mounted

    def enlarge(self, folder: Path) -> None:
        """Enlarge a mounted file system to 1 GiB."""
        subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)

    def remove(self, folder: Path) -> None:
        """Remove a folder, after unmounting its file system if it has one."""
        if folder in self.folders:
            subprocess.run(["umount", str(folder)], check=True)
            self.folders.remove(folder)
        shutil.rmtree(folder)

    def remove_all(self) -> None:
        """Unmount the remaining file systems and remove their folders."""
        for folder in list(self.folders):
            self.remove(folder)


class InterruptedRuns:
    """Interrupted runs, which are compared with the uninterrupted run of their kind.

    Args:
        work: Folder of the runs.
        kinds: Names of the kinds of runs.
    """

    def __init__(self, work: Path, kinds: Sequence[str]) -> None:
        from mllm.tiny.checkpoints import write_tiny

        self.work, self.phases, self.disks = work, Counter[str](), MountedDisks()
        for name in ("medgemma", "gemma3n-student", "medsiglip"):
            write_tiny(name, work / "ckpt" / name)
        self.references = {kind: self._run_uninterrupted(kind) for kind in kinds}

    def interrupt(self, number: int, seed: int) -> None:
        """Interrupt a run once or twice, finish it and compare it.

        Raises:
            FailedRunError: The run ended with an error, or differs from the uninterrupted run.
        """
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
            raise FailedRunError(f"exit code {code} at the end: {self._error_output(folder)}")
        self._compare(folder / "run", reference)
        self.disks.remove(folder)

    def start_in_read_only_folder(self, kind: str) -> None:
        """Start a run in a read-only folder. Raise `FailedRunError` unless it ends with a message."""
        folder = self._new_folder(kind, "read-only")
        (folder / "run").mkdir()
        if os.geteuid() == 0 and not self.disks.mount(folder / "run", "ro"):
            return  # permissions do not apply to root
        if os.geteuid() != 0:
            (folder / "run").chmod(stat.S_IRUSR | stat.S_IXUSR)
        code = self._run(folder)
        output = self._error_output(folder)
        if code != 2 or "cannot be written" not in output:
            raise FailedRunError(f"exit code {code} in a read-only folder: {output}")
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
        """Start a run on a disk that becomes full. Raise `FailedRunError` unless it ends with a message or succeeds."""
        config, fraction = (folder / "run.py").read_text(), rng.uniform(0.02, 1)
        size = int(2 ** rng.uniform(*FILE_SIZE_LIMITS))
        if self.disks.mount(folder, f"size={int(fraction * reference.size)}"):
            (folder / "run.py").write_text(config)
            name, code = "full disk", self._run(folder)
            self.disks.enlarge(folder)
        else:
            name, code = "limit of file size", self._run(folder, prepare=partial(limit_file_size, size))
        if code not in (0, 2):
            raise FailedRunError(f"exit code {code} with a {name}: {self._error_output(folder)}")
        self.phases[name] += code == 2

    def _kill_once(self, folder: Path, reference: UninterruptedRun, rng: np.random.Generator) -> None:
        """Start or resume a run and kill it with SIGKILL, in one of the three ways of the module docstring."""
        operations = len(reference.operations)
        if rng.random() < KILL_AFTER_TRAINING:
            number, delay = int(rng.integers(reference.export + 1, operations + 1)), float(rng.uniform(0, MAX_DELAY))
            code = self._run(folder, prepare=partial(kill_at_operation, number, delay))
        elif rng.random() < 0.5:
            code = self._run(folder, seconds=rng.uniform(0, reference.seconds))
        else:
            code = self._run(folder, prepare=partial(kill_at_operation, int(rng.integers(1, operations + 1)), 0.0))
        if code == -9:
            self.phases[phase_of(folder / "run")] += 1
        elif code != 0:
            raise FailedRunError(f"exit code {code} instead of a kill: {self._error_output(folder)}")

    def _run(self, folder: Path, seconds: float = TIME_LIMIT, prepare: Callable[[], None] | None = None) -> int:
        """Start or resume the run of a folder, kill it after some seconds, and return its exit code.

        `prepare` is called in the process of the run before it begins.
        """
        from mllm.engine.checkpoints import newest_checkpoint

        run, arguments = folder / "run", ["finetune.py", "run.py"]
        if newest_checkpoint(run) is not None:
            arguments.append("--resume")
        elif any(run.glob("checkpoint-*")) or (run / "training_log.json").exists():
            shutil.rmtree(run)  # as a user must: the command refuses a folder that is not empty
        process = start_run(arguments, folder, folder / "log", {}, prepare)
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
        assert process.exitcode is not None
        return process.exitcode

    def _compare(self, run: Path, reference: UninterruptedRun) -> None:
        """Raise `FailedRunError` if results differ from those of the uninterrupted run, or temporary files remain."""
        results = results_of(run)
        for name in results.keys() | reference.results.keys():
            if results.get(name) != reference.results.get(name):
                raise FailedRunError(f"{name} differs from the uninterrupted run")
        if remaining := [str(path) for path in run.rglob("*") if TEMPORARY.search(path.name)]:
            raise FailedRunError(f"{remaining[0]} remains")

    def _error_output(self, folder: Path) -> str:
        lines = (folder / "log.err").read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-6:])


def main(argv: Sequence[str] | None = None) -> int:
    """Interrupt runs, and print the failed runs and the phases of the interruptions. Return 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="number of runs to interrupt (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the interruptions (default: 0)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of runs (default: all)")
    parser.add_argument("--minutes", type=float, default=600, help="start no run after this time (default: 600)")
    args = parser.parse_args(argv)
    started, finished, failed = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as work:
        runs = InterruptedRuns(Path(work), args.kinds)
        tasks: dict[str, Callable[[], object]] = {
            "read-only folder": partial(runs.start_in_read_only_folder, args.kinds[0]),
            **{f"run {number}": partial(runs.interrupt, number, args.seed) for number in range(args.kills)},
        }
        for name, task in tasks.items():
            if time.monotonic() - started > 60 * args.minutes:
                break
            try:
                task()
                finished += 1
            except FailedRunError as error:
                failed += 1
                print(f"{name}: {error}", flush=True)
        runs.disks.remove_all()
    print(f"{finished} runs ended like uninterrupted ones, {failed} did not\n")
    print("| interrupted | times |\n|---|---|")
    for phase, times in sorted(runs.phases.items()):
        print(f"| {phase} | {times} |")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
