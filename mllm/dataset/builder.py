"""Construction of the datasets of a config, including combined datasets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm.config.schema import DataArgs
from mllm.dataset.base import SampleDataset
from mllm.dataset.checking import Splits, check_splits
from mllm.dataset.mixing import PatientSplit, SubsetDataset
from mllm.errors import ConfigError, DataError, UserError, with_location
from mllm.private_messages import in_split
from mllm.registry import DATASETS, build, check

logger = logging.getLogger(__name__)
MINIATURE_ROWS = 8
_METHODS = [name for name in vars(SampleDataset) if callable(getattr(SampleDataset, name))]


def open_datasets(
    data_args: DataArgs, seed: int = 0, origin: Callable[..., str] | None = None, workers: int = 0
) -> Splits:
    """Build the datasets of all splits that are not None, and check all of their rows, large ones by `workers`.

    See `build_datasets` and `check_splits`.
    """
    splits = build_datasets(data_args, seed, origin)
    return check_splits(splits, skip=data_args.on_error == "skip", workers=workers)


def build_datasets(
    data_args: DataArgs, seed: int = 0, origin: Callable[..., str] | None = None
) -> dict[str, SampleDataset]:
    """Build the datasets of all splits that are not None. Their rows are not checked.

    Args:
        data_args: Options of the splits.
        seed: Seed of the run, for datasets without an option `seed`.
        origin: Function that returns the `FILE:LINE` of a key of the config, for messages; None: they name the key.

    Raises:
        ConfigError: The options of a dataset are invalid.
        DataError: A file cannot be read.
    """
    splits = {}
    for number, (name, options) in enumerate(_splits(data_args).items()):
        if options is not None:
            with in_split(name):
                try:
                    splits[name] = build_dataset(options, seed=seed, split=number, where=f"data_args.{name}")
                except UserError as error:
                    raise (error if origin is None else with_location(error, origin("data_args", name))) from error
    return splits


def build_dataset(
    options: Mapping[str, Any], *, seed: int = 0, split: int = 0, where: str = "data_args"
) -> SampleDataset:
    """Build the dataset of `dict(type=..., **options)`; its options `dataset` and `datasets` are built first.

    Args:
        options: The dict.
        seed: Seed of the run. It is the default of the option `seed` of classes with `seed_from = "run"`.
        split: Number of the split. It is the default of the option `seed` of classes with `seed_from = "split"`.
        where: Dotted name of the dict in the config, for messages.

    Raises:
        ConfigError: The type or an option is invalid.
        DataError: A file cannot be read.
    """
    arguments = check(DATASETS, options, tuple(where.split(".")))
    signature = DATASETS.describe(arguments["type"])
    parts: dict[str, Any] = {}
    if "dataset" in arguments:
        parts["dataset"] = build_dataset(arguments.pop("dataset"), seed=seed, split=split, where=f"{where}.dataset")
    if "datasets" in arguments:
        parts["datasets"] = [
            build_dataset(item, seed=seed, split=split, where=f"{where}.datasets.{index}")
            for index, item in enumerate(arguments.pop("datasets"))
        ]
    seed_from = signature.attributes.get("seed_from", "class")
    if "seed" in signature.parameters and seed_from != "class":
        arguments.setdefault("seed", seed if seed_from == "run" else split)
    number = arguments.get("seed")
    if isinstance(number, int) and number < 0:
        raise ConfigError(f"{where}.seed must be at least 0, not {number}")
    try:
        dataset = build(DATASETS, arguments, where, **parts)
    except DataError as error:
        raise with_location(error, where) from error
    if not isinstance(dataset, SampleDataset):
        raise ConfigError(f"{where}: {type(dataset).__name__} must derive from ImageTextDataset or SampleDataset")
    for name in _METHODS:
        if not callable(getattr(dataset, name)):
            raise ConfigError(
                f"{where}: {type(dataset).__name__} has an attribute '{name}', which hides the method of this name of "
                "SampleDataset: rename the attribute"
            )
    return dataset


def _splits(data_args: DataArgs) -> dict[str, dict[str, Any] | None]:
    return {"train": data_args.train, "validation": data_args.validation, "test": data_args.test}


def use_miniatures(
    data_args: DataArgs, folder: Path, is_replaceable: Callable[[Sequence[str]], bool] = lambda key: True
) -> DataArgs:
    """Return the splits with a generated miniature below `folder` in place of each `data_path` that does not exist.

    Args:
        data_args: Options of the splits.
        folder: Folder of the miniatures.
        is_replaceable: Function of a key such as `("data_args", "train", "data_path")`. A path for which it returns
            False stays, and the dataset reports that it does not exist.
    """
    replaced = {
        name: options and _miniature(options, folder / name, ("data_args", name), is_replaceable)
        for name, options in _splits(data_args).items()
    }
    return replace(data_args, train=replaced["train"], validation=replaced["validation"], test=replaced["test"])


def miniatures(data_args: DataArgs, folder: Path) -> list[str]:
    """Return the names of the splits that read a miniature below `folder`."""
    return [name for name, options in _splits(data_args).items() if options and _reads(options, folder)]


def _reads(options: Mapping[str, Any], folder: Path) -> bool:
    """Return True if a dataset, or one inside it, has a `data_path` below `folder`."""
    inner = [*options.get("datasets", []), *([options["dataset"]] if "dataset" in options else [])]
    path = options.get("data_path")
    return (path is not None and folder in Path(path).parents) or any(_reads(part, folder) for part in inner)


def _miniature(
    options: Mapping[str, Any],
    folder: Path,
    where: tuple[str, ...],
    is_replaceable: Callable[[Sequence[str]], bool],
) -> dict[str, Any]:
    """Return the options of a dataset with a miniature in place of an absent file."""
    arguments = dict(options)
    if "datasets" in arguments:
        arguments["datasets"] = [
            _miniature(part, folder.with_name(f"{folder.name}-{i}"), (*where, "datasets", str(i)), is_replaceable)
            for i, part in enumerate(arguments["datasets"])
        ]
        return arguments
    cls = DATASETS.find(arguments["type"])
    if "dataset" in arguments:
        inner = _miniature(arguments["dataset"], folder, (*where, "dataset"), is_replaceable)
        # A miniature is small already, and does not have the selected rows of the real file.
        is_replaced = inner != dict(arguments["dataset"])
        if is_replaced and issubclass(cls, (SubsetDataset, PatientSplit)):
            return inner
        return {**arguments, "dataset": inner}
    path = arguments.get("data_path")
    if path is None or Path(path).expanduser().exists() or not is_replaceable((*where, "data_path")):
        return arguments
    miniature = cls.miniature_with(arguments, folder, MINIATURE_ROWS)
    if not miniature:
        return arguments
    logger.info("--tiny: %s does not exist, so %s reads a generated miniature: %s", path, cls.__name__, folder)
    known = DATASETS.describe(arguments["type"]).parameters
    for name in (
        "reader",
        "split",
        "question",
        "answer",
        "source",
        "target",
        "columns",
        "box",
        "patient_column",
        "patient",
        "instances",
        "labels",
    ):
        arguments.pop(name, None)  # they describe the real files
    return {**arguments, **{key: value for key, value in miniature.items() if key in known}}
