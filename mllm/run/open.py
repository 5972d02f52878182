"""Opening of a run: its processes, its folder, and the checks of a resume."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mllm.config.hardware import Hardware, environment
from mllm.config.reading import read_config
from mllm.config.schema import ModelArgs, RunConfig
from mllm.dataset.checking import Splits
from mllm.engine.run_log import read_skipped
from mllm.errors import ConfigError, UserError
from mllm.export.settings import read_settings
from mllm.family import FAMILIES
from mllm.files import write_json, write_text
from mllm.models.adapters.files import find_adapter
from mllm.private_messages import is_private
from mllm.report.data_summary import describe_data
from mllm.run.folder import open_run_folder
from mllm.run.inputs import Inputs, check_inputs, inputs_of, write_inputs
from mllm.run_files import CONFIG, ENVIRONMENT, former_config_name

logger = logging.getLogger(__name__)

SAME_STATES = {"adamw_torch_fused": "adamw_torch", "adamw_bnb_8bit": "adamw_8bit"}
"""Names of optimizers -> the optimizer whose checkpoints they can read."""


def open_run(config: RunConfig, hardware: Hardware, splits: Splits, resume: bool) -> tuple[Path, Path | None]:
    """Return the run folder and the checkpoint to continue from, on all processes.

    The first process creates the folder and writes the config, the environment and the data summary to it.

    Raises:
        ConfigError: The folder cannot be opened, or a resume changes the trained tensors, the optimizer, the measures
            of a head, the data or the starting weights.
    """
    refuse_changed_measures(config.model_args)
    state = PartialState()
    opened: list[Any] = [None]
    if state.is_main_process:
        try:
            opened = [_open_folder(config, hardware, splits, resume)]
        except UserError as error:
            if state.num_processes == 1:
                raise
            opened = [error]
    if state.num_processes > 1:
        broadcast_object_list(opened)  # an error, too: the other processes wait for it
    if isinstance(opened[0], UserError):
        raise opened[0]
    return cast(tuple[Path, Path | None], opened[0])


def _open_folder(config: RunConfig, hardware: Hardware, splits: Splits, resume: bool) -> tuple[Path, Path | None]:
    """Open the run folder on the first process; see `open_run`."""
    folder, checkpoint = open_run_folder(config.name, config.training_args["output_dir"], resume)
    logger.info("run folder: %s%s", folder, f", continuing from {checkpoint.name}" if checkpoint else "")
    inputs = inputs_of(config, splits)
    log_processes(inputs)
    if checkpoint:
        _check_resumed(config, folder, checkpoint, inputs)
        splits.add_skipped((name, failure) for name, failure in read_skipped(folder) if name in splits)
    write_inputs(folder, inputs)
    write_text(folder / CONFIG, config.text)
    write_json(folder / ENVIRONMENT, report := environment())
    family = FAMILIES.find(config.model_args.type, config.model_args.part)
    if family.show_start is not None:
        family.show_start(config, hardware, report, folder)
    describe_data(splits, folder)
    return folder, checkpoint


def log_processes(inputs: Inputs) -> None:
    """Log how many processes train, if there are several, and warn if there are more of them than samples."""
    if inputs.processes == 1:
        return
    logger.info(
        "%d processes train (%s): an update has %d samples, %d of each process",
        *(inputs.processes, inputs.engine, inputs.samples_per_update, inputs.samples_per_update // inputs.processes),
    )
    if inputs.processes > inputs.rows:
        logger.warning(
            "the training split has %d samples for %d processes, so %d of them have none: start fewer processes",
            *(inputs.rows, inputs.processes, inputs.processes - inputs.rows),
        )


def _check_resumed(config: RunConfig, folder: Path, checkpoint: Path, inputs: Inputs) -> None:
    """Refuse a resume with another model or other data; log other changes of the config, and copy the former config."""
    initial = read_config(folder / CONFIG)
    refuse_changed_model(config, initial, folder)
    refuse_changed_optimizer(config, initial, folder)
    training = config.training_args
    compares_losses = (
        training["load_best_model_at_end"]
        or training["early_stopping_patience"] is not None
        or training["lr_scheduler_type"] == "reduce_lr_on_plateau"
    )
    check_inputs(folder, inputs, compares_losses)
    if changes := (_changed_keys if is_private() else _changes)(initial, config):
        former = folder / former_config_name(checkpoint.name)
        if not former.exists():  # otherwise an earlier resume from this checkpoint copied it
            write_text(former, (folder / CONFIG).read_text(encoding="utf-8"))
        logger.warning("the config differs from the former config of the run (%s): %s", former.name, "; ".join(changes))


def refuse_changed_model(config: RunConfig, initial: RunConfig, folder: Path) -> None:
    """Raise `ConfigError` if a resume changes the model, an objective or the teacher.

    Checkpoints contain their tensors. The weights of objectives may change.
    """
    before, after = _tensor_keys(initial), _tensor_keys(config)
    for key in after | before:
        if after.get(key) != before.get(key):
            raise _changed(key, after.get(key), before.get(key), folder)


def refuse_changed_optimizer(config: RunConfig, initial: RunConfig, folder: Path) -> None:
    """Raise `ConfigError` if a resume changes the optimizer or its options, because checkpoints contain its state."""
    before, after = initial.training_args, config.training_args
    for key in ("optim", "optim_args"):
        if SAME_STATES.get(str(after[key]), after[key]) != SAME_STATES.get(str(before[key]), before[key]):
            raise _changed(f"training_args.{key}", after[key], before[key], folder)


def _changed(key: str, after: Any, before: Any, folder: Path) -> ConfigError:
    """Return the error about a key that a resume may not change."""
    return ConfigError(
        f"--resume: {key} is {after!r}, but the run in {folder} began with {before!r}; set it back, or start a new run "
        "without --resume"
    )


def refuse_changed_measures(args: ModelArgs) -> None:
    """Raise `ConfigError` if the measures or views differ from those of the head in `adapter_path`.

    In another order, the outputs of the head would be assigned to other measures.
    """
    if args.part is None or args.adapter_path is None:
        return
    trained = read_settings(find_adapter(args.adapter_path)).get("heads", {}).get("measures", {})
    for key in ("measures", "views"):
        now, initial = args.heads["measures"].get(key), trained.get(key)
        if now is not None and initial is not None and list(now) != list(initial):
            raise ConfigError(
                f"model_args.heads.measures.{key} is {list(now)}, but the head in {args.adapter_path} was trained with "
                f"{list(initial)}: set them back, in that order"
            )


def _tensor_keys(config: RunConfig) -> dict[str, Any]:
    """Return the keys of a config that determine the trained tensors, with their values."""
    teacher = config.distill_args and asdict(config.distill_args.teacher)
    values = {f"model_args.{key}": value for key, value in asdict(config.model_args).items()}
    values |= {f"distill_args.teacher.{key}": value for key, value in (teacher or {}).items()}
    for name, options in config.objectives.items():
        values |= {f"objectives.{name}.{key}": value for key, value in options.items() if key != "weight"}
    return values


def _changes(initial: RunConfig, config: RunConfig) -> list[str]:
    """Return the differences that a resume may have: `training_args.learning_rate is 0.0001, was 0.0002`."""
    before, after = _flat(_changeable(initial)), _flat(_changeable(config))
    return [
        f"{key} is {after.get(key, 'absent')!r}, was {before.get(key, 'absent')!r}"
        for key in before | after
        if after.get(key, "absent") != before.get(key, "absent")
    ]


def _changed_keys(initial: RunConfig, config: RunConfig) -> list[str]:
    """Return the keys of `_changes` without values, which may be paths of private data."""
    before, now = _flat(_changeable(initial)), _flat(_changeable(config))
    return [f"{key} has changed" for key in before | now if now.get(key, "absent") != before.get(key, "absent")]


def _changeable(config: RunConfig) -> dict[str, Any]:
    """Return the sections of a config that may change in a resume."""
    parts = {"data_args": asdict(config.data_args), "training_args": dict(config.training_args)}
    return parts | {"objectives": config.objectives}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return leaves
