"""Names of the files and folders of a run folder and of an exported folder.

A run folder is `exp/<config name>/<YYYYmmdd_HHMMSS>/`. Exported folders are `adapter/`, `merged/` and `student/` in it,
and folders of GGUF files.
"""

from __future__ import annotations

from pathlib import Path

# Runs.
RUNS = Path("exp")
"""The folder of all runs, relative to the current directory."""
LATEST = "latest"
"""Symbolic link in the folder of the runs of a config to the run that trained last."""
DATA_CHECK = "data"
"""Folder of the report of `mllm data`, in the folder of the runs of a config."""
DATA_PAGE = "data.html"
DATA_ROWS = "rows.jsonl"
"""Facts of the rows, in `DATA_CHECK`."""
VISION_CACHE = RUNS / "vision_cache"
"""Folder of the stored features of images, which all runs share."""
MINIATURE = "miniature"
"""Folder of the generated data of `--tiny`, in the folder of the runs of a config."""

# Run folder: folders.
ADAPTER = "adapter"
MERGED = "merged"
STUDENT = "student"
EPOCHS = "epochs"
TENSORBOARD = "tensorboard"
CHECKPOINT = "checkpoint-"
"""Prefix of the folder of a checkpoint; the number of the update follows."""

# Run folder: files.
LOCK = ".lock"
CONFIG = "config.py"
ENVIRONMENT = "environment.json"
ENVIRONMENT_TABLE = "environment.md"
DATA_SUMMARY = "data_summary.json"
INPUTS = "inputs.json"
"""Digests of data and starting weights, which a resume compares."""
MICRO_BATCHES = "micro_batches.json"
"""Sizes of micro-batches that `tokens_per_micro_batch="auto"` found."""
MEASURES_PLOT = "measures.png"
FIRST_BATCH = "first_batch.md"
TRAINING_LOG = "training_log.json"
LOSS_PLOT = "loss.png"
PROGRESS_PLOT = "training_progress.png"
SKIPPED_ROWS = "skipped_rows.txt"
PRIVACY = "privacy.json"
PREDICTIONS = "predictions.jsonl"
METRICS = "metrics.json"
UNFINISHED = ".unfinished-"
"""Middle of the names of files with the predictions of an evaluation that has not ended; the name of the evaluation
stands before it, the number of the process follows."""
UNTRAINED = "untrained"
"""Folder of the evaluation before the training, and the name of its unfinished predictions."""
AGREEMENT_PLOT = "agreement.png"
WARNINGS = "warnings.json"
"""Warnings that the run logged."""
REPORT_PAGE = "report.html"
"""Also in the output folder of an evaluation."""
PLAN = "plan.json"
"""The plan of the run, which a process of its own computes beside the training."""
FACTS = "facts.json"
"""Also in every exported folder."""

# Checkpoint: files in addition to those of transformers.
COMPLETE = "complete.json"
"""Written last: the files of the checkpoint with their sizes. Without it the checkpoint is incomplete."""
WRITING = ".writing"
"""An empty file in a checkpoint until it is complete."""
LEDGER = "ledger.json"
"""The noisy updates of a private run."""

# Exported folder.
CARD = "README.md"
SETTINGS = "mllm.json"
"""The settings with which samples were encoded in training."""
TRAINED = "heads.safetensors"
"""Trained tensors other than the LoRA: heads, added tokens, a projector."""
REPORT = "export_report.json"
MODELFILE = "Modelfile"
"""The file from which Ollama creates a model."""
ADAPTER_CONFIG = "adapter_config.json"
"""The configuration of a PEFT adapter."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_CONFIG = "config.json"
"""The configuration of a transformers checkpoint."""
MODEL_WEIGHTS = "model.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
"""The index of weights in several files."""


def runs_of(name: str) -> Path:
    """Return the folder of all runs of the config `name`."""
    return RUNS / name


def data_page_of(name: str) -> Path:
    """Return the page that `mllm data` writes for the config `name`."""
    return runs_of(name) / DATA_CHECK / DATA_PAGE


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` updates."""
    return f"{CHECKPOINT}{step}"


def checkpoint_step(folder: Path) -> int | None:
    """Return the number of updates of a checkpoint folder; None if `folder` has another name."""
    number = folder.name.removeprefix(CHECKPOINT)
    return int(number) if folder.name.startswith(CHECKPOINT) and number.isdecimal() else None


def former_config_name(checkpoint: str) -> str:
    """Return the name under which a resume keeps the former config, which was valid up to `checkpoint`."""
    return f"config_until_{checkpoint}.py"
