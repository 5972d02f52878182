"""Finding and loading what answers: an adapter with its base, or a whole model, encoded as in training."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm.config.checkpoint import inspect_checkpoint
from mllm.config.defaults import make_model_args
from mllm.config.hardware import CHECKOUT, Hardware, detect
from mllm.config.rules import AMPERE
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError, near
from mllm.export.settings import read_base, read_settings
from mllm.family import FAMILIES
from mllm.models.adapters.files import find_adapter
from mllm.models.builder.builder import load_pretrained
from mllm.structures import Bundle

logger = logging.getLogger(__name__)


def adapter_args(adapter: str, base: str | None = None, **given: Any) -> ModelArgs:
    """The `model_args` of an adapter: a folder, the run folder around it, or a name on the Hugging Face Hub.

    The base is the one that `adapter_config.json` names unless `base` is given; `given` are keys that the command line
    set (None: not set), which go before those of `mllm.json`. Raises `ConfigError` where a part is missing.
    """
    _refuse_absent(adapter)
    _refuse_other_folders(Path(adapter))
    inner = Path(adapter) / "adapter"
    folder = find_adapter(inner if inner.is_dir() else adapter)
    source = located(base or _base_of(folder))
    return make_model_args(
        model_name_or_path=source,
        adapter_path=str(folder),
        lora_r=None,
        **_settings(folder, source, given),
    )


def _refuse_absent(adapter: str) -> None:
    """Refuses a folder that is not there; `ORG/NAME` may be a name on the Hub where there is no folder ORG."""
    folder = Path(adapter)
    on_hub = len(folder.parts) == 2 and not folder.is_absolute() and not folder.parent.is_dir()
    if not folder.is_dir() and not on_hub:
        if folder.name == "adapter":
            _refuse_other_folders(folder.parent)
        beside = [other.name for other in folder.parent.iterdir()] if folder.parent.is_dir() else []
        tail = "".join(f": did you mean '{folder.parent / name}'?" for name in near(folder.name, beside, count=1))
        raise ConfigError(f"--adapter {adapter} is no folder{tail}")


def _refuse_other_folders(folder: Path) -> None:
    """Refuses a folder of runs, a run that wrote no adapter, and a whole model, each with what to name instead."""
    if (folder / "adapter").is_dir() or (folder / "adapter_config.json").is_file():
        return
    if (folder / "latest").is_dir():
        raise ConfigError(f"--adapter {folder} is a folder of runs; name one of them, such as {folder / 'latest'}")
    if (folder / "config.json").is_file():
        raise ConfigError(f"--adapter {folder} holds a whole model and no adapter; give it as --model")
    if (folder / "config.py").is_file():
        raise ConfigError(
            f"--adapter {folder} is a run without an adapter: it did not come to its end, or wrote merged/ alone; "
            "let it end with finetune.py --resume, or give merged/ as --model"
        )


def _refuse_run_folder(folder: Path) -> None:
    """Refuses a run's folder where a model is asked for, with the folder in it that was meant."""
    if not (folder / "config.json").is_file():
        for name, option in (("merged", "--model"), ("student", "--model"), ("adapter", "--adapter")):
            if (folder / name).is_dir():
                raise ConfigError(f"--model {folder} is a run's folder and no model; give {option} {folder / name}")


def whole_model_args(model: str, **given: Any) -> ModelArgs:
    """The `model_args` of a merged or untrained model: a folder or a name on the Hugging Face Hub."""
    folder = Path(located(model))
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(f"--model '{model}' is a LoRA adapter; give it as --adapter")
    _refuse_run_folder(folder)
    return make_model_args(model_name_or_path=located(model), lora_r=None, **_settings(folder, model, given))


def _settings(folder: Path, source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The encoding of training: from `mllm.json`, else by the checkpoint's architecture, else MedGemma's."""
    # A name on the Hub is not inspected: its config.json may not be on this machine yet.
    settings = read_settings(folder, type=FAMILIES.reading(inspect_checkpoint(source).model_type).type)
    return settings | {key: value for key, value in given.items() if value is not None}


def _base_of(folder: Path) -> str:
    """The base model that an adapter was trained on, as it says itself."""
    path = folder / "adapter_config.json"
    if not path.is_file() and (told := read_base(folder)) is not None:
        return told  # no LoRA, but heads or a projector
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not base:
        raise ConfigError(f"{path} names no base model; give it with --base")
    return str(base)


def located(name: str) -> str:
    """A relative folder as seen from here or, where there is none here, from the checkout; other names unchanged."""
    here, there = Path(name), CHECKOUT / name
    return str(there) if not here.is_dir() and not here.is_absolute() and there.is_dir() else name


def best_hardware() -> Hardware:
    """This machine, with the fastest precision that is safe on it: bf16, on older cards fp16, on a CPU fp32."""
    hardware = detect()
    if hardware.capability is None:
        return hardware
    return replace(hardware, precision="bf16" if hardware.capability >= AMPERE else "fp16")


def load_for_answers(args: ModelArgs, hardware: Hardware) -> Bundle:
    """The model on the hardware's device, ready to answer."""
    logger.info("loading %s on %s in %s", args.model_name_or_path, hardware.name, hardware.precision)
    bundle = load_pretrained(args, hardware)
    if not (args.load_in_4bit or args.load_in_8bit):
        # Quantized weights are placed while they are loaded, and must not be moved.
        bundle.model.to(hardware.device)
    return bundle
