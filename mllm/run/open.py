"""Opening a run: its folder, and on a resume what may differ from the config that it began with and what may not."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mllm.config.hardware import Hardware, environment
from mllm.config.reading import read_config
from mllm.config.schema import ModelArgs, RunConfig
from mllm.dataset.base import SampleDataset
from mllm.errors import ConfigError
from mllm.export.settings import read_settings
from mllm.files import write_json, write_text
from mllm.models.adapters.files import find_adapter
from mllm.report.data_summary import describe_data
from mllm.run.folder import open_run_folder
from mllm.run.phases import conduit, reservoir

logger = logging.getLogger(__name__)


def open_run(
    config: RunConfig, hardware: Hardware, splits: dict[str, SampleDataset], resume: bool
) -> tuple[Path, Path | None]:
    """The run's folder with its config and environment in it, and the checkpoint to continue from.

    The first process opens it and tells the others its name.
    """
    refuse_other_measures(config.model_args)
    patience = timedelta(seconds=config.training_args.get("ddp_timeout", 1800))
    state = PartialState(cpu=hardware.device == "cpu", timeout=patience)  # later calls share this state
    opened: list[Any] = [None]
    if state.is_main_process:
        folder, checkpoint = open_run_folder(config.name, config.training_args.get("output_dir"), resume)
        logger.info("run folder: %s%s", folder, f", continuing from {checkpoint.name}" if checkpoint else "")
        if checkpoint:
            began = read_config(folder / "config.py")
            refuse_another_model(config, began, folder)
            if changes := _changes(began, config):
                kept = folder / f"config_until_{checkpoint.name}.py"
                if not kept.exists():  # else a resume before this one left it, and made no checkpoint
                    write_text(kept, (folder / "config.py").read_text(encoding="utf-8"))
                logger.warning("not as the run began (%s keeps that): %s", kept.name, "; ".join(changes))
        write_text(folder / "config.py", config.text)
        write_json(folder / "environment.json", report := environment())
        if config.model_args.part is not None:
            reservoir(report, hardware, folder)
            conduit(config, hardware)
        describe_data(splits, folder)
        opened = [(folder, checkpoint)]
    if state.num_processes > 1:
        broadcast_object_list(opened)
    return opened[0]


def refuse_another_model(config: RunConfig, began: RunConfig, folder: Path) -> None:
    """A run continues with the model, objectives and teacher that it began with, whose tensors its checkpoints hold.

    The weights of objectives may change: no tensor depends on them.
    """
    before, now = _shaping(began), _shaping(config)
    for key in now | before:
        if now.get(key) != before.get(key):
            raise ConfigError(
                f"--resume: {key} is {now.get(key)!r}, but the run in {folder} began with {before.get(key)!r}; "
                "set it back, or start a new run without --resume"
            )


def refuse_other_measures(args: ModelArgs) -> None:
    """A head is continued with the names that it has: in another order its numbers would be taken for each other."""
    if args.part is None or args.adapter_path is None:
        return
    told = read_settings(find_adapter(args.adapter_path)).get("heads", {}).get("measures", {})
    for key in ("measures", "views"):
        now, began = args.heads["measures"].get(key), told.get(key)
        if now is not None and began is not None and list(now) != list(began):
            raise ConfigError(
                f"model_args.heads.measures.{key} is {list(now)}, but the head in {args.adapter_path} was trained with "
                f"{list(began)}: set them back, in that order"
            )


def _shaping(config: RunConfig) -> dict[str, Any]:
    """What a config says of the tensors that train, by key."""
    taught = config.distill_args and asdict(config.distill_args.teacher)
    told = {f"model_args.{key}": value for key, value in asdict(config.model_args).items()}
    told |= {f"distill_args.teacher.{key}": value for key, value in (taught or {}).items()}
    for name, options in config.objectives.items():
        told |= {f"objectives.{name}.{key}": value for key, value in options.items() if key != "weight"}
    return told


def _changes(began: RunConfig, config: RunConfig) -> list[str]:
    """`training_args.learning_rate is 0.0001, was 0.0002`, for all that is read, and how it is learned."""
    before, now = _flat(_learning(began)), _flat(_learning(config))
    return [
        f"{key} is {now.get(key, 'absent')!r}, was {before.get(key, 'absent')!r}"
        for key in before | now
        if now.get(key, "absent") != before.get(key, "absent")
    ]


def _learning(config: RunConfig) -> dict[str, Any]:
    """The parts of a config that a resume may change."""
    parts = {"data_args": asdict(config.data_args), "training_args": dict(config.training_args)}
    return parts | {"objectives": config.objectives}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by their whole name."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return leaves
