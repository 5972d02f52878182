"""Inputs of a run besides its config: the ordered data, the starting weights, and the number of processes."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from mllm.config.rules.sharding import engine_of
from mllm.config.schema import ModelArgs, RunConfig
from mllm.dataset.checking import Splits
from mllm.engine.builder import logical_batch_size
from mllm.errors import ConfigError
from mllm.files import write_json
from mllm.models.adapters.files import find_adapter
from mllm.models.builder.build_options import checkpoint_of
from mllm.run.data import sampler_seed
from mllm.run_files import INPUTS, MODEL_CONFIG

logger = logging.getLogger(__name__)

CHUNK, CHUNKS = 2**16, 256
"""Size in bytes and number of the evenly spaced parts of a file of weights that are hashed."""

WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Inputs:
    """Inputs of a run, as written to its folder. A resumed run must have equal ones to continue its updates."""

    rows: int
    """Number of samples of the training split."""
    digest: str
    """Digest of the rows of the training split."""
    validation: str
    """Digest of the rows of the validation split; empty without one."""
    order: int
    """Seed of the order of the samples."""
    samples_per_update: int
    """Number of samples of an update, over all processes."""
    drops_last: bool
    """True if an incomplete last update of an epoch is left out."""
    processes: int
    weights: dict[str, str]
    """Digest of each local checkpoint and adapter that the run starts from, by its config key."""
    engine: str = "ddp"
    """The engine of the processes: 'ddp', 'fsdp2', 'zero2' ... Checkpoints of the engines differ."""


def inputs_of(config: RunConfig, splits: Splits) -> Inputs:
    """Return the inputs of a run of this config with the present number of processes."""
    training, processes = config.training_args, PartialState().num_processes
    weights = _weights("model_args", config.model_args)
    if config.distill_args is not None:
        weights |= _weights("distill_args.teacher", config.distill_args.teacher)
    return Inputs(
        rows=len(splits["train"]),
        digest=splits.reports["train"].content,
        validation=splits.reports["validation"].content if "validation" in splits else "",
        order=sampler_seed(config),
        samples_per_update=logical_batch_size(training) * processes,
        drops_last=bool(training["dataloader_drop_last"]),
        processes=processes,
        weights=weights,
        engine=engine_of(config),
    )


def write_inputs(folder: Path, inputs: Inputs) -> None:
    """Write the inputs of a run to its folder."""
    write_json(folder / INPUTS, asdict(inputs))


def check_inputs(folder: Path, current: Inputs, compares_losses: bool) -> None:
    """Raise `ConfigError` if a resumed run could not continue its updates, because its inputs have changed.

    Changes without influence on the result are logged: the number of processes, and a validation split whose losses are
    only shown.

    Args:
        folder: The run folder.
        current: The present inputs.
        compares_losses: True if the run compares the validation losses of different steps.
    """
    initial = _read_inputs(folder)
    if initial is None:
        logger.warning("%s has no readable %s, so changes of the data cannot be detected", folder, INPUTS)
        return
    for change in (
        _changed_data(initial, current),
        _changed_update(initial, current),
        _changed_engine(initial, current),
        _changed_weights(initial, current),
        _changed_validation(initial, current) if compares_losses else None,
    ):
        if change is not None:
            raise ConfigError(f"--resume: {change}, or start a new run without --resume")
    if initial.processes != current.processes:
        logger.warning(
            "the run continues with %d instead of %d processes: its updates have the same samples, but different "
            "random numbers for dropout",
            *(current.processes, initial.processes),
        )
    if initial.validation != current.validation:
        logger.warning("the validation split has changed: its losses before and after the resume are not comparable")


def _changed_data(initial: Inputs, current: Inputs) -> str | None:
    """Return the difference of the training data or their order, and the fix; None if they are equal."""
    if initial.rows != current.rows:
        return (
            f"the training split has {current.rows:,} samples, but the run began with {initial.rows:,}, so samples "
            "would be repeated or left out: restore the data and data_args.train"
        )
    if initial.digest != current.digest:
        return (
            f"the {current.rows:,} samples of the training split are not those that the run began with: restore the "
            "data and data_args.train"
        )
    if initial.order != current.order:
        return (
            f"the seed of the order of the samples is {current.order}, but the run began with {initial.order}, so "
            "samples would be repeated or left out: set training_args.seed or data_seed back"
        )
    return None


def _changed_validation(initial: Inputs, current: Inputs) -> str | None:
    """Return the difference of the validation data, and the fix; None if they are equal."""
    if initial.validation == current.validation:
        return None
    return (
        "the validation split is not that which the run began with, and load_best_model_at_end, early stopping and "
        "reduce_lr_on_plateau compare its losses: restore the data and data_args.validation, turn these off"
    )


def _changed_update(initial: Inputs, current: Inputs) -> str | None:
    """Return the difference of the division of an epoch into updates, and the fix; None if it is equal."""
    if initial.drops_last != current.drops_last:
        return f"training_args.dataloader_drop_last is {current.drops_last}, was {initial.drops_last}: set it back"
    if initial.samples_per_update == current.samples_per_update:
        return None
    per_process, remainder = divmod(initial.samples_per_update, current.processes)
    fix = f"start it with {_count(initial.processes)}"
    if not remainder:
        fix = (
            "choose training_args.per_device_train_batch_size and gradient_accumulation_steps with the product "
            f"{per_process}"
        )
        fix += "" if initial.processes == current.processes else f", or start it with {_count(initial.processes)}"
    return (
        f"an update has {current.samples_per_update} samples on {_count(current.processes)}, but "
        f"{initial.samples_per_update} on {_count(initial.processes)} in the run so far: {fix}"
    )


def _changed_engine(initial: Inputs, current: Inputs) -> str | None:
    """Return the difference of the engines, whose checkpoints are not those of each other; None if there is none."""
    if initial.engine != current.engine:
        return (
            f"the run began with {initial.engine}, and its checkpoints cannot be read by {current.engine}: set "
            "training_args.fsdp and deepspeed back"
        )
    if current.engine.startswith("zero") and initial.processes != current.processes:
        return (
            f"a checkpoint of DeepSpeed is for {_count(initial.processes)}, and {_count(current.processes)} "
            f"{'reads' if current.processes == 1 else 'read'} it: start it with {_count(initial.processes)}"
        )
    return None


def _changed_weights(initial: Inputs, current: Inputs) -> str | None:
    """Return the starting weights that differ, and the fix; None if all are equal."""
    for key in current.weights.keys() & initial.weights.keys():
        if current.weights[key] != initial.weights[key]:
            return f"the weights in {key} have changed since the run began: put the former files back"
    return None


def _count(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def _read_inputs(folder: Path) -> Inputs | None:
    """Return the inputs that a run began with; None if an older version began it."""
    try:
        values: dict[str, Any] = json.loads((folder / INPUTS).read_text(encoding="utf-8"))
        return Inputs(**values)
    except (OSError, ValueError, TypeError):
        return None


def _weights(section: str, args: ModelArgs) -> dict[str, str]:
    """Return the digests of the checkpoint and the adapter of a model, without those on the Hugging Face Hub."""
    key = "model_name_or_path"
    folders = {key: Path(checkpoint_of(args))}
    if args.adapter_path is not None:
        folders["adapter_path"] = find_adapter(args.adapter_path)
    weights = {f"{section}.{key}": _digest_of(folder, *WEIGHTS) for key, folder in folders.items() if folder.is_dir()}
    if args.from_scratch and folders[key].is_dir():
        weights[f"{section}.{key}"] = _digest_of(folders[key], MODEL_CONFIG)
    return weights


def _digest_of(folder: Path, *patterns: str) -> str:
    """Return a digest of the files in a folder, from at most `CHUNKS` parts of each file."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        step = max(CHUNK, size // CHUNKS)
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(CHUNK))
    return digest.hexdigest()
