"""Benchmark of the memory of a distillation at full size: `finetune.py` with both full towers and random weights.

The student is MobileNet-v5 (`mobilenetv5_300m_enc`) at 768 pixels, the teacher SigLIP with 27 layers of width 1152 at
896 pixels. Their checkpoints have a small language model, which part='vision' does not load. The run makes one update
with two generated hearts. The output is the peak memory of its process, including Python and libraries. README.md has
the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from transformers import (
    AutoConfig,
    Gemma3ForConditionalGeneration,
    Gemma3nForConditionalGeneration,
    SiglipImageProcessor,
)
from transformers.models.gemma3n import Gemma3nVisionConfig

from mllm.config.hardware import installed
from mllm.tiny.checkpoints import write_tiny
from mllm.tiny.parts import random_model

SIGLIP = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=896)
MOBILENET_SIDE = 768
LIMIT = 12e9
"""Maximum memory of the run in bytes."""
CONFIG = """
_base_ = ["{root}/config/_base_/models/gemma3n_student.py", "{root}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="student")
distill_args = dict(teacher=dict(model_name_or_path="teacher"))
objectives = dict(feature_match=dict(normalize=False))
data_args = dict(train=dict(type="PhantomEchoDataset", size=2), on_error="raise")
training_args = dict(max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2, eval_strategy="no",
                     save_strategy="no", gradient_checkpointing={checkpointing}, dataloader_num_workers=0, report_to=[])
"""


def write_models(folder: Path) -> dict[str, int]:
    """Write the checkpoints `student/` and `teacher/`; return the number of parameters of their towers."""
    student, teacher = write_tiny("gemma3n-student", folder / "student"), write_tiny("medgemma", folder / "teacher")
    config = AutoConfig.from_pretrained(student)
    offset = config.vision_config.vocab_offset
    config.vision_config = Gemma3nVisionConfig(vocab_size=8, vocab_offset=offset)
    config.vision_soft_tokens_per_image = 256
    mobilenet = random_model(Gemma3nForConditionalGeneration, config, 0)
    mobilenet.save_pretrained(student)
    side = {"height": MOBILENET_SIDE, "width": MOBILENET_SIDE}
    SiglipImageProcessor(size=side, do_normalize=False, do_convert_rgb=True).save_pretrained(student)
    config = AutoConfig.from_pretrained(teacher)
    for key, value in SIGLIP.items():
        setattr(config.vision_config, key, value)
    siglip = random_model(Gemma3ForConditionalGeneration, config, 0)
    siglip.save_pretrained(teacher)
    towers = {"student": mobilenet.model.vision_tower, "teacher": siglip.model.vision_tower}
    return {name: sum(parameter.numel() for parameter in tower.parameters()) for name, tower in towers.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing of the student")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = write_models(folder)
        (folder / "run.py").write_text(CONFIG.format(root=ROOT, checkpointing=options.checkpointing))
        command = [sys.executable, str(ROOT / "mllm" / "pipeline" / "finetune.py"), "run.py"]
        started = time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        subprocess.run(command, cwd=folder, check=True, env=environment)
        seconds = time.perf_counter() - started
        peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        log = json.loads((folder / "exp" / "run" / "latest" / "training_log.json").read_text())
    print(", ".join(f"{name} tower {size / 1e6:.0f} million" for name, size in sizes.items()))
    print({key: value for key, value in log["rows"][0].items() if key in ("loss", "feature_match", "grad_norm")})
    packages = installed(("torch", "transformers", "timm"))
    print(f"peak {peak / 1e9:.2f} GB, {seconds:.0f} s in total, {options.threads} threads; {packages}")
    if peak > LIMIT:
        sys.exit(f"the peak memory exceeds {LIMIT / 1e9:.0f} GB")


if __name__ == "__main__":
    main()
