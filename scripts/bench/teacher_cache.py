"""Benchmark of the cache of the teacher's features: second epoch of a distillation with the cache and without.

A tiny MobileNet-v5 with a LoRA learns from a random SigLIP of width 384 with 8 layers at 224 pixels, on generated
hearts. The same student without a teacher is the third method. All use the code path of a config. Runs alternate, each
in its own process. A ratio is printed only if the losses of all updates are bit-equal with the cache and without, and
the first loss of the measures is that of the student alone. README.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import distillation_work  # noqa: F401  (registers CachedEchoDataset, which generates each heart once)
import torch
from interleaved import Figures, in_fresh_process, machine, resident_memory, table
from transformers import TrainerCallback, set_seed

from mllm.config.hardware import CHECKOUT, installed
from mllm.engine.builder import build_learner, prepare_trainer
from mllm.models.builder.builder import load_pretrained
from mllm.run.data import open_splits, prepare_data, scale_measures
from mllm.run.distill import cache_features, fit_objectives, load_teacher, release_teacher, training_encoder
from mllm.run.prepare import prepare_args
from mllm.tiny.checkpoints import write_tiny

TEACHER = dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=6, image_size=224)
BATCH = 8
"""Patients per update, with two images each."""
CONFIG = """
_base_ = ["{checkout}/config/_base_/models/gemma3n_student.py", "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="{folder}/student")
distill_args = dict(teacher=dict(_delete_=True, type="medsiglip", model_name_or_path="{folder}/teacher"),
                    cache={cached}, cache_folder="cache")
{alone}
data_args = dict(train=dict(type="CachedEchoDataset", labeled={samples}, unlabeled=0, length={samples}, seed=0,
                            image_size=224), on_error="raise")
training_args = dict(num_train_epochs=2, per_device_train_batch_size={batch}, dataloader_num_workers=0,
                     save_strategy="no", report_to=[], disable_tqdm=True)
"""

ALONE = 'distill_args = None\nobjectives = dict(_delete_=True, measures=dict(type="MeasureLoss"))'
"""Changes of the config for the student without a teacher."""
METHODS = {"cache": "with the cache", "resident": "resident teacher", "alone": "student alone"}


class Clock(TrainerCallback):
    """Wall time and CPU time at the ends of the epochs, in seconds."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the time."""
        self.ends.append((time.perf_counter(), time.process_time()))


def work(folder: Path, method: str, samples: int, threads: int) -> dict[str, Any]:
    """Train two epochs; return the seconds of the second one, the peak memory, and all losses."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as here:
        os.chdir(here)
        values = dict(checkout=CHECKOUT, folder=folder, cached=method == "cache", samples=samples, batch=BATCH)
        values["alone"] = ALONE if method == "alone" else ""
        Path("run.py").write_text(CONFIG.format(**values), encoding="utf-8")
        config, hardware = prepare_args("run.py")
        splits = open_splits(config)
        set_seed(0)
        bundle = load_pretrained(config.model_args, hardware)
        teacher = load_teacher(config, hardware, bundle)
        learner = build_learner(config, bundle, teacher)
        scale_measures(config, bundle, splits["train"])
        cache = cache_features(config, teacher, splits)
        if cache is not None:
            assert teacher is not None
            release_teacher(learner, teacher)
        encoder = training_encoder(bundle, teacher, cache)
        fit_objectives(learner, encoder, splits["train"])
        data = prepare_data(config, hardware, bundle, encoder, splits)
        trainer, clock = prepare_trainer(config, hardware, learner, Path("run"), data), Clock()
        del teacher
        trainer.add_callback(clock)
        with resident_memory() as peak:
            trainer.train()
        os.chdir(folder)
    wall, cpu = (last - first for first, last in zip(*clock.ends, strict=True))
    rows = [row for row in trainer.state.log_history if "loss" in row]
    losses = [row[key] for row in rows for key in ("loss", "measures", "feature_match") if key in row]
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "bytes": peak.bytes,
        "losses": losses,
        "first": rows[0]["measures"],
    }


def compare(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the alternating runs of all methods; exit if their losses differ."""
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for _ in range(options.rounds):
        for method, results in runs.items():
            arguments = [f"--method={method}", f"--folder={folder}", f"--samples={options.samples}"]
            result = in_fresh_process(__file__, [*arguments, f"--threads={options.threads}"], options.threads)
            print(f"{method}: {result['seconds']:.1f} s, CPU {result['cpu_seconds']:.1f} s", flush=True)
            results.append(result)
    first, *others = [result["losses"] for method in ("cache", "resident") for result in runs[method]]
    beginnings = {result["first"] for results in runs.values() for result in results}
    if any(losses != first for losses in others) or len(beginnings) > 1:
        sys.exit(f"no ratio: the losses differ: {[first, *others]}, {beginnings}")
    print(f"all {len(first)} logged losses are bit-equal in {len(others) + 1} runs, the last is {first[-1]!r}")
    return runs


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=32, help=f"patients per epoch, in batches of {BATCH}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--method", choices=tuple(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.method:
        result = work(options.folder, options.method, options.samples, options.threads)
        options.result.write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        write_tiny("medsiglip", folder / "teacher", vision=TEACHER)
        write_tiny("gemma3n-student", folder / "student")
        runs = compare(options, folder)
    versions = ", ".join(" ".join(pair) for pair in installed(["torch", "transformers", "timm", "peft"]).items())
    for other in ("resident", "alone"):
        rows = {f"{options.samples} patients": (Figures.of(runs["cache"]), Figures.of(runs[other]))}
        print(f"\n{table(rows, METHODS['cache'], METHODS[other])}")
    cpu = {method: median(result["cpu_seconds"] for result in results) for method, results in runs.items()}
    print(f"\nCPU seconds with the cache: {cpu['cache']:.2f}")
    for other in ("resident", "alone"):
        ratio = cpu[other] / cpu["cache"]
        print(f"CPU seconds, {METHODS[other]}: {cpu[other]:.2f}, {ratio:.2f} times those with the cache")
    print(f"{machine(options.threads)}; {versions}")


if __name__ == "__main__":
    main()
