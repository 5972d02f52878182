"""Planned and measured memory of a run, for `facts.json`."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from accelerate import PartialState

from mllm.config.hardware import CHECKOUT, Hardware
from mllm.engine.trainer import MultimodalTrainer
from mllm.run_files import CONFIG, PLAN

logger = logging.getLogger(__name__)
LAUNCHER = ("RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "ACCELERATE_", "SLURM_", "PMI_", "OMPI_")
"""Beginnings of the variables that torchrun, accelerate, srun and mpirun set."""
PATIENCE = 300.0
"""Most seconds that a run waits for its plan after the training."""


@dataclass(frozen=True)
class Planning:
    """The process that computes the plan of a run, and the memory of the run before it loads its model."""

    resident: int
    """Bytes."""
    process: subprocess.Popen[bytes] | None

    def __enter__(self) -> Planning:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the process if the run fails: its folder may be removed."""
        if kind is not None and self.process is not None:
            self.process.kill()
            self.process.wait()

    def finish(self) -> None:
        """Wait for the plan, and end its process if it takes too long."""
        if self.process is None:
            return
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code:
            logger.info("the memory of the run was not planned: `mllm plan` on its config shows the reason")


def start_plan(hardware: Hardware, folder: Path, wanted: bool | None) -> Planning:
    """Start the plan of a run on its first process, if it is `wanted`; None: on a GPU.

    A process of its own computes it with low priority, while the model is loaded and trained: it takes a quarter of a
    minute of one core, and the objects of the training are not touched. The plan of an earlier start of the run is
    removed, because a resume can have another config.
    """
    resident = psutil.Process().memory_info().rss
    if not PartialState().is_main_process:
        return Planning(resident, None)
    (folder / PLAN).unlink(missing_ok=True)
    if not (hardware.device == "cuda" if wanted is None else wanted):
        return Planning(resident, None)
    script = CHECKOUT / "mllm" / "pipeline" / "plan.py"
    command = [sys.executable, str(script), str(folder / CONFIG), "--json", str(folder / PLAN)]
    command += ["--gpus", str(PartialState().num_processes)]
    silent: Any = subprocess.DEVNULL
    # The process is alone, and plans without a GPU.
    environment = without_launcher(os.environ) | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent, env=environment)
    psutil.Process(process.pid).nice(5)
    return Planning(resident, process)


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that no launcher of processes sets."""
    return {key: value for key, value in environment.items() if not key.startswith(LAUNCHER)}


def memory_facts(folder: Path, trainer: MultimodalTrainer) -> dict[str, float | None]:
    """Return `Facts.memory` of a run; empty without a plan."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    meter, tokens = trainer.meter, plan["tokens"] // plan["samples"]
    seconds = meter.seconds
    return {
        "planned": plan["peak"],
        "measured": meter.peak_of_tensors(trainer.args.device),
        "flops_per_token": plan["flops_per_sample"] / tokens if tokens else None,
        "tokens_per_second": meter.tokens / seconds if seconds else None,
    }
