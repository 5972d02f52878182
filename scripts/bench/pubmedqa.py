"""Benchmark with real text: a tiny model is trained on the 1,000 labeled questions of PubMedQA with finetune.py.

Targets are the long answers to questions, and the decisions (yes, no, maybe) for a question with its long answer, the
reasoning-free setting of the paper (arXiv:1909.06146). Every fifth question is held out. README.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from interleaved import machine

from mllm.config.hardware import installed
from mllm.parsing import parse_choice

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = """
_base_ = ["{checkout}/config/_base_/models/gemma3n_text.py", "{checkout}/config/_base_/datasets/first_aid.py",
          "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(load_in_4bit=False, lora_r=64, lora_alpha=64, max_length=512)
data_args = dict(
    train=dict(_delete_=True, type="ConcatDataset", datasets=[
        dict(type="TextQADataset", data_path="long_train.jsonl"),
        dict(type="TextQADataset", data_path="decision_train.jsonl"),
    ]),
    validation=dict(_delete_=True, type="TextQADataset", data_path="long_held_out.jsonl"),
    test=dict(_delete_=True, type="TextQADataset", data_path="decision_held_out.jsonl"),
    compute_metric="choice", gen_kwargs=dict(max_new_tokens=8, batch_size=16),
    tokens_per_micro_batch=4 * 512, packing={packing},
)
training_args = dict(max_steps={steps}, per_device_train_batch_size=16, learning_rate={rate}, warmup_steps=5,
                     lr_scheduler_type="cosine", eval_strategy="steps", eval_on_start=True, eval_steps={every},
                     per_device_eval_batch_size=16, save_strategy="no", logging_steps={every}, seed={seed},
                     report_to=[], output_dir="run")
"""


def write_splits(data: Path, folder: Path) -> dict[str, int]:
    """Write the training and held-out rows of both kinds for `ori_pqal.json` of PubMedQA; return their numbers."""
    questions: dict[str, dict[str, Any]] = json.loads(data.read_text(encoding="utf-8"))
    splits: dict[str, list[dict[str, str]]] = {}
    for number, identity in enumerate(sorted(questions)):
        row, split = questions[identity], "train" if number % 5 else "held_out"
        question, answer = row["QUESTION"], row["LONG_ANSWER"]
        splits.setdefault(f"long_{split}", []).append({"question": question, "answer": answer})
        decide = f"{answer}\nSo, yes, no or maybe: {question}"
        splits.setdefault(f"decision_{split}", []).append({"question": decide, "answer": row["final_decision"]})
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {name: len(rows) for name, rows in splits.items()}


def run(
    data: Path, folder: Path, *, steps: int, every: int, rate: float, seed: int, threads: int, packing: bool
) -> dict[str, Any]:
    """Train in `folder` and return the held-out losses by step and the metrics of the held-out decisions."""
    sizes = write_splits(data, folder)
    config = folder / "pubmedqa.py"
    values = dict(steps=steps, every=every, rate=rate, seed=seed, packing=packing)
    config.write_text(CONFIG.format(checkout=CHECKOUT, **values), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(CHECKOUT / "mllm" / "pipeline" / "finetune.py"), str(config), "--tiny"]
    command += ["--cfg-options", f"training_args.max_steps={steps}"]  # a number in the config is limited by --tiny
    completed = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if completed.returncode:
        sys.exit(f"{completed.stderr[-4000:]}\nfinetune.py failed with exit code {completed.returncode}")
    log = json.loads((folder / "run" / "training_log.json").read_text())["rows"]
    rows = [json.loads(line) for line in (folder / "run" / "predictions.jsonl").read_text().splitlines()]
    figures = json.loads((folder / "run" / "metrics.json").read_text())["figures"]
    trained = [row for row in log if "loss" in row]
    return {
        "sizes": sizes,
        "held_out_loss": {row["step"]: row["eval_loss"] for row in log if "eval_loss" in row},
        "decisions": figures,
        "predicted": Counter(str(parse_choice(row["prediction"], ("yes", "no", "maybe"))) for row in rows),
        "true": Counter(row["reference"] for row in rows),
        "tokens_per_second": trained[-1]["tokens_per_second"],
        "padding_share": trained[-1]["padding_share"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="ori_pqal.json of github.com/pubmedqa/pubmedqa")
    parser.add_argument("--steps", type=int, default=60, help="updates of 16 samples")
    parser.add_argument("--every", type=int, default=30, help="updates between two evaluations of the held-out loss")
    parser.add_argument("--rate", type=float, default=1e-2, help="maximum learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-packing", dest="packing", action="store_false")
    options = vars(parser.parse_args(argv))
    data = options.pop("data").resolve()
    with tempfile.TemporaryDirectory() as folder:
        result = run(data, Path(folder), **options)
    versions = ", ".join(" ".join(pair) for pair in installed(["torch", "transformers", "peft"]).items())
    print(json.dumps(result, indent=1))
    print(f"{machine(options['threads'])}; {versions}")


if __name__ == "__main__":
    main()
