"""Benchmark of `mllm plan` on a CPU: planned and measured peak memory of ten configs with random models of 50-200 MB.

python scripts/bench/plan_error.py [--case NAME ...]

For each config a process of its own loads the model and makes two updates with the micro-batch of the plan. The
measured memory is its largest resident set in the second update, less that of the process after an update of a tiny
model, which loads all libraries. The allocator of the C
library returns freed memory at once (variables MALLOC_...), so that the resident set follows the tensors. README.md has
the figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

TEXT = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4)
GEMMA = {**TEXT, "head_dim": 64, "layer_types": ["sliding_attention", "full_attention"] * 3}
VISION = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4)
QWEN_VISION = dict(hidden_size=256, intermediate_size=1024, depth=4, num_heads=4, out_hidden_size=512)
MEDGEMMA = dict(type="medgemma", lora_r=16, image_size=224, image_token_len=64, max_length=512)
CHAT = dict(next_token=dict(type="NextToken"))
DUMMY = dict(type="DummyDataset", size=8, image_size=224)
CASES: dict[str, dict[str, Any]] = {
    "LoRA, fp32": dict(tiny="medgemma", model=MEDGEMMA),
    "LoRA, checkpointing": dict(tiny="medgemma", model=MEDGEMMA, training=dict(gradient_checkpointing=True)),
    "LoRA, bf16": dict(tiny="medgemma", model=MEDGEMMA, training=dict(bf16=True), hardware=dict(bf16=True)),
    "LoRA, 4 bits": dict(tiny="medgemma", model={**MEDGEMMA, "load_in_4bit": True}),
    "LoRA, 8 bits": dict(tiny="medgemma", model={**MEDGEMMA, "load_in_8bit": True}),
    "LoRA on both towers": dict(tiny="medgemma", model={**MEDGEMMA, "lora_target": "all"}),
    "all weights": dict(tiny="medgemma", model={**MEDGEMMA, "trainable": "full"}),
    "packed samples": dict(tiny="medgemma", model=MEDGEMMA, data=dict(packing=True)),
    "Qwen3-VL": dict(
        tiny="qwen3_vl",
        text={**TEXT, "head_dim": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6,
              "mrope_section": [12, 10, 10], "mrope_interleaved": True}},
        vision=QWEN_VISION,
        model=dict(type="image-text", lora_r=16, max_length=512),
    ),
    "text encoder-decoder": dict(
        tiny="t5gemma",
        text=GEMMA,
        model=dict(type="seq2seq", lora_r=16, max_length=256),
        train=dict(type="TextQADataset", data_path="rows.jsonl"),
    ),
}  # fmt: skip
TRAINING = dict(per_device_train_batch_size=4, optim="adamw_torch", use_cpu=True, seed=0)
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}


def write(folder: Path, case: dict[str, Any]) -> Path:
    """Write the checkpoint and the config of a case to `folder`, and return the config's file."""
    from mllm.tiny.checkpoints import write_tiny

    folder.mkdir(exist_ok=True)
    write_tiny(case["tiny"], folder / "model", text=case.get("text", GEMMA), vision=case.get("vision", VISION))
    (folder / "rows.jsonl").write_text(json.dumps({"question": "What is this?", "answer": "A row."}) + "\n")
    train = dict(case.get("train", DUMMY))
    if "data_path" in train:
        train["data_path"] = str(folder / train["data_path"])
    sections = {
        "model_args": {**case["model"], "model_name_or_path": str(folder / "model")},
        "objectives": CHAT,
        "data_args": {"train": train, **case.get("data", {})},
        "training_args": {**TRAINING, **case.get("training", {})},
        "hardware": case.get("hardware", {}),
    }
    file = folder / "run.py"
    file.write_text("".join(f"{name} = {value!r}\n" for name, value in sections.items()))
    return file


def resident(key: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure(warm_up: str, config_file: str) -> int:
    """Return the largest resident set of an update, less that of the loaded process, in bytes.

    An update of a tiny model comes first: it loads the code of libraries, which take 80 MB.
    """
    update(warm_up)
    gc.collect()
    before = resident("VmRSS")
    return update(config_file) - before


def update(config_file: str) -> int:
    """Make two updates of a config; return the largest resident set of the second one in bytes."""
    import torch

    from mllm.config.hardware import detect
    from mllm.config.reading import read_config
    from mllm.config.rules import apply_rules
    from mllm.planning.plan import prepare
    from mllm.structures import LogicalBatch

    torch.set_num_threads(1)
    config, hardware = apply_rules(read_config(config_file), detect())
    prepared = prepare(config, hardware, Path(config_file).parent / "run", None)
    trainer, learner = prepared.trainer, prepared.trainer.learner
    optimizer = trainer.create_optimizer()
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM is the present resident set from now on
        batch = LogicalBatch([prepared.piece], prepared.piece.samples, 1, 1)
        trainer.training_step(learner, batch, trainer._global_counts(batch, trainer.args.device))
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return resident("VmHWM")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--measure", nargs=2, metavar="CONFIG", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    from mllm.config.hardware import detect
    from mllm.planning.plan import plan

    print(f"{'config':<24}{'planned MB':>12}{'measured MB':>13}{'error':>9}")
    for name in options.case:
        with tempfile.TemporaryDirectory() as temporary:
            warm_up = write(Path(temporary) / "tiny", {**CASES[name], "text": {}, "vision": {}})
            file = write(Path(temporary), CASES[name])
            planned = plan(str(file), [], detect()).peak
            command = [sys.executable, __file__, "--measure", str(warm_up), str(file)]
            result = subprocess.run(
                command,
                env={**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode:
                sys.exit(result.stderr)
            measured = json.loads(result.stdout.splitlines()[-1])
        error = planned / measured - 1
        print(f"{name:<24}{planned / 1e6:>12.1f}{measured / 1e6:>13.1f}{error:>+9.1%}", flush=True)


if __name__ == "__main__":
    main()
