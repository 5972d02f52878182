"""Rows and training runs of the checks of `check_gpu.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mllm.errors import UserError, one_line

CHECKOUT = Path(__file__).resolve().parents[1]
TINY = f"""
_base_ = ["{CHECKOUT}/config/_base_/models/medgemma.py", "{CHECKOUT}/config/_base_/datasets/dummy.py",
          "{CHECKOUT}/config/_base_/runtime/finetune.py"]
model_args = dict(lora_r=4, lora_target="all", image_size=112, image_token_len=16, max_length=256, lora_dropout=0.0)
data_args = dict(train=dict(size=8, image_size=112), validation=None, test=dict(size=2, image_size=112),
                 gen_kwargs=dict(max_new_tokens=8), vision_cache=False)
training_args = dict(max_steps=4, per_device_train_batch_size=2, logging_steps=1, save_strategy="steps", save_steps=2,
                     learning_rate=1e-3, lr_scheduler_type="constant", warmup_steps=0, dataloader_num_workers=0,
                     report_to=[], tf32=False)
"""
"""Config of the runs whose losses are compared."""


@dataclass
class Row:
    """Row of the table."""

    check: str
    result: str
    """passed, failed or skipped."""
    text: str
    """Result in words."""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """The device that is checked, and the folder for runs and weights."""

    device: str
    """cuda, or cpu."""
    folder: Path
    capability: tuple[int, int] = (0, 0)

    @property
    def is_gpu(self) -> bool:
        """Return True on a GPU."""
        return self.device == "cuda"


class SkippedError(Exception):
    """Reason why a check does not apply to this machine."""


def guarded(name: str, check: Callable[[Machine], Row], machine: Machine) -> Row:
    """Return the row of a check. An error is a failed row with one sentence."""
    try:
        return check(machine)
    except SkippedError as reason:
        return Row(name, "skipped", str(reason))
    except UserError as error:
        return Row(name, "failed", one_line(str(error)))
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        return Row(name, "failed", f"{type(error).__name__}: {one_line(str(error))[:300]}")


@dataclass(frozen=True)
class Run:
    """Results of a training run."""

    folder: Path
    rows: list[dict[str, float]]

    @property
    def losses(self) -> list[float]:
        """Return the loss of each update."""
        return [row["loss"] for row in self.rows if "loss" in row]

    @property
    def answers(self) -> list[str]:
        """Return the generated answers."""
        lines = (self.folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["prediction"] for line in lines]


def run(machine: Machine, name: str, *overrides: str, config: str = "", options: Sequence[str] = ("--tiny",)) -> Run:
    """Train a config, TINY by default, in the folder `name`, and return its results; a finished run is not repeated."""
    from mllm.pipeline.finetune import main

    folder = machine.folder / name
    if not (folder / "facts.json").is_file() or "--resume" in options:
        file = machine.folder / "tiny.py"
        file.write_text(TINY, encoding="utf-8")
        current = Path.cwd()
        os.chdir(machine.folder)  # tiny checkpoints and caches are written to the current folder
        try:
            settings = [f"training_args.output_dir={folder}", *overrides]
            code = main([config or str(file), "--no-plan", *options, "--cfg-options", *settings])
        finally:
            os.chdir(current)
        assert code == 0, f"the run ended with exit code {code}"
    return Run(folder, json.loads((folder / "training_log.json").read_text(encoding="utf-8"))["rows"])


def as_dict(row: Row) -> dict[str, Any]:
    """Return a row for a JSON file."""
    return asdict(row)
