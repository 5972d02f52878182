"""Boxes as text against a token that heads read: accuracy, tokens and seconds after equally many updates.

Tiny models learn on generated scenes and phantoms, by finetune.py and evaluate_model.py as a user calls them; every run
has processes of its own, and the two ways alternate over the seeds. README.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from interleaved import machine

from mllm.config.hardware import installed

CHECKOUT = Path(__file__).resolve().parents[2]
HEADS = 'dict(box=dict(type="BoxHead", hidden=256{outline}), mask=dict(type="MaskHead", dim=64))'
WAYS = {
    "boxes as text": "{}",
    "heads": HEADS.format(outline=", outline=True"),
    "heads, box from the state alone": HEADS.format(outline=""),
}
"""What `model_args.heads` is in each way."""


def config_text(way: str, seed: int, options: argparse.Namespace) -> str:
    """The config of one run; both ways differ in heads and objectives alone."""
    heads = WAYS[way]
    terms = ["next_token=dict(type='NextToken')"]
    if heads != "{}":
        terms += ["box=dict(type='BoxLoss', weight=0.3)", "mask=dict(type='MaskLoss')"]

    def split(size: int, seed: int) -> str:
        scenes = f"dict(type='SceneDataset', size={size}, seed={seed}, image_size=112)"
        phantoms = f"dict(type='PhantomBoxDataset', size={size // 4}, seed={seed}, image_size=112, lesions=(1, 1))"
        return f"dict(_delete_=True, type='ConcatDataset', datasets=[{scenes}, {phantoms}])"

    return f"""
_base_ = ["{CHECKOUT}/config/_base_/models/medgemma.py", "{CHECKOUT}/config/_base_/datasets/dummy.py",
          "{CHECKOUT}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="ckpt/tiny-medgemma", lora_r=32, lora_dropout=0.0, lora_target="all",
                  image_size=112, image_token_len=64, max_length=256, heads={heads})
objectives = dict({", ".join(terms)})
data_args = dict(train={split(options.samples, 10 + seed)}, validation=None, test={split(options.held_out, 1000)},
                 compute_metric={["rec"] if heads == "{}" else ["rec", "res"]}, gen_kwargs=dict(max_new_tokens=40))
training_args = dict(max_steps={options.steps}, per_device_train_batch_size=16, learning_rate=1e-3, seed={seed},
                     eval_strategy="no", save_strategy="no", logging_steps=50, report_to=[])
"""


def run(way: str, seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates one way in `folder`; gives its figures."""
    name = f"way{list(WAYS).index(way)}_seed{seed}"
    config = folder / f"run_{name}.py"
    config.write_text(config_text(way, seed, options), encoding="utf-8")
    tiny = ["--tiny"]
    _call(
        "finetune.py",
        [str(config), *tiny, "--cfg-options", f"training_args.output_dir={name}", "data_args.test=None"],
        folder,
        options.threads,
    )
    _call(
        "evaluate_model.py",
        [str(config), *tiny, "--adapter", f"{name}/adapter", "--split", "test", "--out", f"{name}_test"],
        folder,
        options.threads,
    )
    found: dict[str, Any] = json.loads((folder / f"{name}_test" / "metrics.json").read_text())
    count = found["counts"]["answers"]
    figures = {
        "accuracy": found["figures"]["rec"]["accuracy"],
        "mean_iou": found["figures"]["rec"]["mean_iou"],
        "failed": found["figures"]["rec"]["failed"],
        "tokens": found["counts"]["tokens"] / count,
        "seconds": found["seconds"] / count,
        "mask_iou": found["figures"].get("res", {}).get("gIoU"),
    }
    print(f"{way}, seed {seed}: {figures}", flush=True)
    return figures


def _call(pipeline: str, arguments: Sequence[str], folder: Path, threads: int) -> None:
    """Runs a pipeline in a process of its own; exits where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(CHECKOUT / "mllm" / "pipeline" / pipeline), *arguments]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{ended.stderr[-4000:]}\n{pipeline} ended with exit code {ended.returncode}")


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: one line for each way, means with the least and the greatest of the seeds."""
    lines = [
        "| | accuracy at IoU 0.5 | mean IoU of boxes | mean IoU of masks | tokens an answer | ms an image |",
        "|---|---|---|---|---|---|",
    ]
    for way, found in runs.items():
        cells = [_spread([one[key] for one in found]) for key in ("accuracy", "mean_iou", "mask_iou", "tokens")]
        cells.append(_spread([1000 * one["seconds"] for one in found], 1))
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float | None], digits: int = 2) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{mean(known):.{digits}f} ({min(known):.{digits}f}-{max(known):.{digits}f})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500, help="updates of 16 samples")
    parser.add_argument("--samples", type=int, default=16000, help="training scenes, and a quarter as many phantoms")
    parser.add_argument("--held-out", type=int, default=128, help="test scenes, and a quarter as many phantoms")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
        for seed in range(options.seeds):
            for way in options.ways:
                runs[way].append(run(way, seed, Path(folder), options))
    versions = ", ".join(" ".join(pair) for pair in installed(["torch", "transformers", "peft"]).items())
    print(f"\n{table(runs)}\n\n{machine(options.threads)}; {versions}")


if __name__ == "__main__":
    main()
