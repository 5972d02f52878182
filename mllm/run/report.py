"""Report of a run folder or of an evaluation: the data for its pictures, and the command `mllm report`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mllm.config.reading import read_config
from mllm.config.schema import RunConfig
from mllm.dataset.builder import build_datasets
from mllm.errors import ConfigError, UserError
from mllm.report.run.inputs import RunFiles, read_run
from mllm.report.run.page import write_report
from mllm.report.run.pictures import Split
from mllm.run.prepare import with_tiny_parts
from mllm.run_files import CONFIG


def rewrite_report(folder: Path) -> Path:
    """Write `report.html` again from the files of a run folder or of the output folder of an evaluation.

    Pictures are read from the data that the config names; without them the report has no pictures and says why.

    Raises:
        ConfigError: The folder has no file that a report could show.
    """
    run = read_run(folder)
    try:
        config = None if run.is_private else _config(run)
    except UserError as error:
        return write_report(folder, partial(_refuse, str(error)))
    return write_report(folder, partial(_open, config, run))


def _config(run: RunFiles) -> RunConfig:
    """Return the config of a run or an evaluation; its modules of `custom_imports` register datasets and metrics."""
    settings: Mapping[str, Any] = run.metrics["settings"] if run.is_evaluation else {}
    path = settings.get("config") or str(run.folder / CONFIG)
    config = read_config(path, settings.get("cfg_options") or ())
    return with_tiny_parts(config) if settings.get("tiny") else config


def _open(config: RunConfig | None, run: RunFiles) -> dict[str, Split]:
    """Open the splits that a report shows: training and test, or the one that was evaluated."""
    if config is None:
        return {}
    used = (run.split,) if run.is_evaluation else ("train", "test")
    others: dict[str, Any] = {name: None for name in ("train", "validation", "test") if name not in used}
    return dict(build_datasets(replace(config.data_args, **others), seed=config.training_args["seed"]))


def _refuse(reason: str) -> dict[str, Split]:
    raise ConfigError(reason)
