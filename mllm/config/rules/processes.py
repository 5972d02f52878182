"""Rules for the processes of a run: those that a launcher did not connect, and those without a GPU."""

from __future__ import annotations

import os

from mllm.config.hardware import Hardware
from mllm.errors import ConfigError

LAUNCH = "start it with mllm launch --nproc_per_node=PROCESSES train CONFIG"


def refuse_unconnected_processes() -> None:
    """Raise `ConfigError` if several processes were asked for, and this one trains without the others.

    Each would train the whole model alone, with another batch than that of the run.
    """
    if "RANK" in os.environ or "PMI_RANK" in os.environ or "OMPI_COMM_WORLD_RANK" in os.environ:
        return
    if "MASTER_ADDR" in os.environ and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        raise ConfigError(
            "accelerate launch --cpu starts one process for any --num_processes, which would train with a smaller "
            f"batch: {LAUNCH}"
        )
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks.isdigit() and int(tasks) > 1:
        raise ConfigError(
            f"srun started {tasks} tasks that are not connected, so each would train a model of its own: start one "
            "task per node, which starts mllm launch, as scripts/slurm.sh does"
        )


def refuse_processes_without_gpu(hardware: Hardware) -> None:
    """Raise `ConfigError` if there are more processes on this machine than GPUs."""
    rank = os.environ.get("LOCAL_RANK", "0")
    if hardware.device == "cuda" and rank.isdigit() and int(rank) >= hardware.count:
        raise ConfigError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', int(rank) + 1)} processes were started on a machine with "
            f"{hardware.count} GPUs: lower --nproc_per_node, or train on the CPU with training_args.use_cpu=True"
        )
