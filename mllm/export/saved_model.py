"""Reader of exported folders: the `model_args` and the facts of an adapter or a whole model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mllm.config.checkpoint import inspect_checkpoint
from mllm.config.defaults import make_model_args
from mllm.config.hardware import CHECKOUT
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError, nearest_names
from mllm.export.facts import Facts, known_facts
from mllm.export.settings import encoding_settings, read_base, read_settings
from mllm.family import FAMILIES
from mllm.models.adapters.files import find_adapter
from mllm.run_files import ADAPTER, ADAPTER_CONFIG, CONFIG, LATEST, MERGED, MODEL_CONFIG, STUDENT


def adapter_args(adapter: str, base: str | None = None, **overrides: Any) -> ModelArgs:
    """Return the `model_args` of an adapter: its folder, the run folder, or a name on the Hugging Face Hub.

    `base` replaces the base model that `adapter_config.json` names. `overrides` are keys from the command line (None:
    not set), which take precedence over `mllm.json`. Raises `ConfigError` if a part is missing.
    """
    _refuse_absent(adapter)
    _refuse_other_folders(Path(adapter))
    inner = Path(adapter) / ADAPTER
    folder = find_adapter(inner if inner.is_dir() else adapter)
    source = local_name(base or _base_of(folder))
    return make_model_args(
        model_name_or_path=source,
        adapter_path=str(folder),
        lora_r=None,
        **_settings(folder, source, overrides),
    )


def whole_model_args(model: str, **overrides: Any) -> ModelArgs:
    """Return the `model_args` of a merged or untrained model: a folder or a name on the Hugging Face Hub.

    Raises `ConfigError` for an adapter and for a run folder.
    """
    folder = Path(local_name(model))
    if (folder / ADAPTER_CONFIG).is_file():
        raise ConfigError(f"--model '{model}' is a LoRA adapter; pass it as --adapter")
    _refuse_run_folder(folder)
    return make_model_args(model_name_or_path=local_name(model), lora_r=None, **_settings(folder, model, overrides))


def adapter_facts(args: ModelArgs) -> Facts:
    """Return the facts about the adapter that `adapter_args` found.

    Without `facts.json` they consist of the base model and the settings.
    """
    return known_facts(Path(str(args.adapter_path)), args.model_name_or_path, encoding_settings(asdict(args)))


def local_name(name: str) -> str:
    """Return a relative folder name relative to the checkout if the current directory has no such folder.

    Other names are returned unchanged.
    """
    folder, in_checkout = Path(name), CHECKOUT / name
    return str(in_checkout) if not folder.is_dir() and not folder.is_absolute() and in_checkout.is_dir() else name


def _settings(folder: Path, source: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `mllm.json`, or else the type of the checkpoint's architecture, with `overrides`."""
    # A name on the Hub is not inspected: its config.json may not be downloaded yet.
    settings = read_settings(folder, type=FAMILIES.for_architecture(inspect_checkpoint(source).model_type).type)
    return settings | {key: value for key, value in overrides.items() if value is not None}


def _base_of(folder: Path) -> str:
    """Return the base model that the files of an adapter name; raises `ConfigError` if there is none."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file() and (base := read_base(folder)) is not None:
        return base  # an adapter without LoRA: heads or a projector
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not name:
        raise ConfigError(f"{path} names no base model; pass it as --base")
    return str(name)


def _refuse_absent(adapter: str) -> None:
    """Raise `ConfigError` for a folder that does not exist, unless it can be a name on the Hub, `ORG/NAME`."""
    folder = Path(adapter)
    on_hub = len(folder.parts) == 2 and not folder.is_absolute() and not folder.parent.is_dir()
    if folder.is_file():
        raise ConfigError(f"--adapter {adapter} is a file: name the folder of the adapter")
    if not folder.is_dir() and not on_hub:
        if folder.name == ADAPTER:
            _refuse_other_folders(folder.parent)
        siblings = [other.name for other in folder.parent.iterdir()] if folder.parent.is_dir() else []
        tail = "".join(
            f": did you mean '{folder.parent / name}'?" for name in nearest_names(folder.name, siblings, count=1)
        )
        raise ConfigError(f"--adapter {adapter} does not exist{tail}")


def _refuse_other_folders(folder: Path) -> None:
    """Raise `ConfigError` for a folder of runs, a run without adapter, and a whole model."""
    if (folder / ADAPTER).is_dir() or (folder / ADAPTER_CONFIG).is_file():
        return
    if (folder / LATEST).is_dir():
        raise ConfigError(f"--adapter {folder} is a folder of runs; pass one of them, such as {folder / LATEST}")
    if (folder / MODEL_CONFIG).is_file():
        raise ConfigError(f"--adapter {folder} contains a whole model and no adapter; pass it as --model")
    if (folder / CONFIG).is_file():
        raise ConfigError(
            f"--adapter {folder} is a run without an adapter: it did not finish, or wrote only merged/; continue it "
            "with finetune.py --resume, or pass merged/ as --model"
        )


def _refuse_run_folder(folder: Path) -> None:
    """Raise `ConfigError` for a run folder, with the folder in it that contains a model."""
    if not (folder / MODEL_CONFIG).is_file():
        for name, option in ((MERGED, "--model"), (STUDENT, "--model"), (ADAPTER, "--adapter")):
            if (folder / name).is_dir():
                raise ConfigError(f"--model {folder} is a run folder, not a model; pass {option} {folder / name}")
