"""Benchmark of the memory of long contexts: one update of a tiny MedGemma on a CPU, with and without segment attention.

python scripts/bench/long_context.py --tokens 2048 4096 8192 16384 [--packing yes]

Each run has two samples of an image and a long text, gradient checkpointing and micro-batches of one sample. With
packing the attention is computed in segments. The output is the peak memory of the process and its growth by token,
the memory of the training by plan and measurement, and the time of the update.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = f"""
_base_ = ["{CHECKOUT}/config/_base_/models/medgemma.py", "{CHECKOUT}/config/_base_/datasets/dummy.py",
          "{CHECKOUT}/config/_base_/runtime/finetune.py"]
model_args = dict(lora_r=4, image_size=112, image_token_len=16, max_length={{length}})
data_args = dict(train=dict(_delete_=True, type="VQADataset", data_path="rows.jsonl", image_folder="."),
                 validation=None, test=None, compute_metric=[], vision_cache=False, packing={{packing}},
                 tokens_per_micro_batch={{length}})
training_args = dict(max_steps=1, per_device_train_batch_size=2, warmup_steps=0, save_strategy="no", report_to=[],
                     logging_steps=1, dataloader_num_workers=0, gradient_checkpointing=True)
"""


def measure(folder: Path, tokens: int, packing: bool) -> dict[str, float]:
    """Return the mean tokens of a sample, the memory of a run in GB and its seconds."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "0.png")
    text = "lung " * int(0.95 * tokens)
    rows = [{"image": "0.png", "question": f"{text}{number}?", "answer": "yes", "patient": number} for number in (1, 2)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.py").write_text(CONFIG.format(length=tokens, packing=packing))
    command = [sys.executable, str(CHECKOUT / "mllm/pipeline/finetune.py"), "run.py", "--tiny", "--plan"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr[-2000:])
    (row,) = json.loads((folder / "exp/run/latest/training_log.json").read_text())["rows"]
    memory = json.loads((folder / "exp/run/latest/facts.json").read_text())["memory"]
    return {
        "tokens": row["tokens_per_second"] * row["seconds"] / 2,
        "peak": row["peak_memory_gb"],
        "planned": memory["planned"] / 1e9,
        "measured": memory["measured"] / 1e9,
        "seconds": row["seconds"],
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--packing", choices=["yes", "no"], help="measure only runs with or without packing")
    arguments = parser.parse_args()
    heads = ["tokens of a sample", "packing", "peak of the process, GB", "KB for each further token"]
    heads += ["training by plan, GB", "measured, GB", "seconds"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for packing in [False, True] if arguments.packing is None else [arguments.packing == "yes"]:
            before: dict[str, float] | None = None
            for tokens in arguments.tokens:
                own = measure(Path(temporary) / f"{tokens}{packing}", tokens, packing)
                growth = ""
                if before is not None:
                    growth = f"{1e6 * (own['peak'] - before['peak']) / (own['tokens'] - before['tokens']):.0f}"
                cells = [f"{own['tokens']:,.0f}", str(packing), f"{own['peak']:.2f}", growth]
                cells += [f"{own['planned']:.2f}", f"{own['measured']:.2f}", f"{own['seconds']:.0f}"]
                print(f"| {' | '.join(cells)} |", flush=True)
                before = own


if __name__ == "__main__":
    main()
