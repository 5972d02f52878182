"""Builds the datasets that a config names, the combinators with what they are made of."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mllm.dataset.single_image_dataset
import mllm.dataset.video_dataset  # noqa: F401  (both register their datasets)
from mllm.config.schema import DataArgs
from mllm.dataset.base import ImageTextDataset, SampleDataset
from mllm.dataset.mixing import PatientSplit, SubsetDataset, check_leakage
from mllm.errors import ConfigError, hint
from mllm.registry import DATASETS

logger = logging.getLogger(__name__)
MINIATURE_ROWS = 8


def build_datasets(data_args: DataArgs, seed: int = 0) -> dict[str, SampleDataset]:
    """The dataset of every split that is not None; refuses a patient who is in two of them.

    `seed` is the run's: it draws augmentations and mixtures whose options give no seed of their own.
    """
    splits = {}
    for number, (name, options) in enumerate(_splits(data_args).items()):
        if options is not None:
            splits[name] = build_dataset(options, seed=seed, split=number, place=f"data_args.{name}")
    if len(splits) > 1:
        check_leakage(splits, skip=data_args.on_error == "skip")
    return splits


def build_dataset(
    options: Mapping[str, Any], *, seed: int = 0, split: int = 0, place: str = "data_args"
) -> SampleDataset:
    """The dataset of `dict(type=..., **arguments)`; `dataset` and `datasets` among them are built first.

    `seed` is the run's and `split` the number of the split, for datasets whose options leave `seed` out. `place` is
    where the options stand, for messages. Raises `ConfigError` for a type or an argument that does not exist.
    """
    arguments = _with_data_path(dict(options), place)
    kind = arguments.pop("type", None)
    if kind is None:
        raise ConfigError(f"{place} has no 'type'{hint('type', arguments)}")
    try:
        cls = DATASETS.find(kind)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    _check_arguments(cls, arguments, place)
    for key, value in arguments.items():
        if key == "dataset":
            arguments[key] = build_dataset(value, seed=seed, split=split, place=f"{place}.dataset")
        elif key == "datasets":
            arguments[key] = [
                build_dataset(item, seed=seed, split=split, place=f"{place}.datasets[{number}]")
                for number, item in enumerate(value)
            ]
    known = inspect.signature(cls).parameters
    if "seed" in known and cls.seed_from != "class":
        arguments.setdefault("seed", seed if cls.seed_from == "run" else split)
    try:
        return _construct(cls, arguments)
    except TypeError as error:
        raise ConfigError(f"{place} ({kind}): {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _construct(cls: type[SampleDataset], arguments: dict[str, Any]) -> SampleDataset:
    """The dataset; what its constructor does not take but every dataset of images does is set afterwards."""
    own = inspect.signature(cls.__init__).parameters
    if any(item.kind is item.VAR_KEYWORD for item in own.values()) or not issubclass(cls, ImageTextDataset):
        return cls(**arguments)
    later = {name: value for name, value in arguments.items() if name not in own}
    dataset = cls(**{name: value for name, value in arguments.items() if name in own})
    if later:
        dataset.configure(**later)
    return dataset


def _check_arguments(cls: type, arguments: Mapping[str, Any], place: str) -> None:
    if not (isinstance(cls, type) and issubclass(cls, SampleDataset)):
        raise ConfigError(f"{place}: {cls.__name__} must derive from ImageTextDataset")
    known = inspect.signature(cls).parameters
    if not any(item.kind is item.VAR_KEYWORD for item in known.values()):
        for key in arguments:
            if key not in known:
                raise ConfigError(f"{place}: {cls.__name__} has no argument '{key}'{hint(key, known)}")
    for name, item in known.items():
        if item.default is item.empty and item.kind is item.POSITIONAL_OR_KEYWORD and name not in arguments:
            raise ConfigError(f"{place}: {cls.__name__} needs '{name}'")
    seed = arguments.get("seed")
    if "seed" in arguments and (not isinstance(seed, int) or seed < 0):
        raise ConfigError(f"{place}: seed must be a whole number of at least 0, not {seed!r}")
    path = arguments.get("data_path", "")
    if "data_path" in arguments and not (isinstance(path, (str, Path)) and str(path)):
        raise ConfigError(f"{place}: data_path must be the name of a file, not {path!r}")
    for key, wanted in (("dataset", Mapping), ("datasets", (list, tuple))):
        if key in arguments and not isinstance(arguments[key], wanted):
            raise ConfigError(f"{place}.{key} must be {'a dict' if key == 'dataset' else 'a list of dicts'}")


def _with_data_path(arguments: dict[str, Any], place: str) -> dict[str, Any]:
    """The arguments with Shikra's `filename` as `data_path`."""
    if "filename" in arguments:
        if "data_path" in arguments:
            raise ConfigError(f"{place}: 'filename' and 'data_path' mean the same: keep 'data_path'")
        arguments["data_path"] = arguments.pop("filename")
    return arguments


def _splits(data_args: DataArgs) -> dict[str, dict[str, Any] | None]:
    return {"train": data_args.train, "validation": data_args.validation, "test": data_args.test}


def use_miniatures(data_args: DataArgs, folder: Path) -> DataArgs:
    """The same splits, with a generated miniature below `folder` where a `data_path` does not exist."""
    small = {name: options and _miniature(options, folder / name) for name, options in _splits(data_args).items()}
    return replace(data_args, train=small["train"], validation=small["validation"], test=small["test"])


def _miniature(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    arguments = _with_data_path(dict(options), "data_args")
    cls = DATASETS.find(arguments["type"])
    if "datasets" in arguments:
        parts = enumerate(arguments["datasets"])
        return {
            **arguments,
            "datasets": [_miniature(part, folder.with_name(f"{folder.name}-{i}")) for i, part in parts],
        }
    if "dataset" in arguments:
        inner = _miniature(arguments["dataset"], folder)
        # Rows chosen from the real file are not in a miniature, which is a part already.
        chosen = issubclass(cls, (SubsetDataset, PatientSplit)) and inner != dict(arguments["dataset"])
        return inner if chosen else {**arguments, "dataset": inner}
    path = arguments.get("data_path")
    if path is None or Path(path).expanduser().exists():
        return arguments
    made = cls.miniature(folder, MINIATURE_ROWS)
    if not made:
        return arguments
    logger.info("--tiny: %s does not exist, so %s reads a generated miniature: %s", path, cls.__name__, folder)
    known = inspect.signature(cls).parameters
    for name in ("reader", "split", "question", "answer", "source", "target"):
        arguments.pop(name, None)  # these are for the real files
    return {**arguments, **{key: value for key, value in made.items() if key in known}}
