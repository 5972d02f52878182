"""Loading of a trained model as a library: `from mllm import load`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm.config.hardware import check_packages
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.export.saved_model import adapter_args, local_name, whole_model_args
from mllm.predict.load import best_hardware
from mllm.predict.loaded_model import LoadedModel
from mllm.predict.variants import load_variants
from mllm.run_files import ADAPTER, ADAPTER_CONFIG, LATEST, MERGED, MODEL_CONFIG, STUDENT

_INNER = frozenset({ADAPTER, MERGED, STUDENT, LATEST})
"""Names of folders that say nothing about the model in them."""
_DATE = re.compile(r"\d{8}_\d{6}")
"""Name of a run folder."""


def load(
    adapter: str | Path | None = None,
    *,
    adapters: Mapping[str, str | Path] | None = None,
    model: str | Path | None = None,
    base: str | Path | None = None,
    batch_size: int = 4,
    share_images: bool = True,
    **model_args: Any,
) -> LoadedModel:
    """Load a trained adapter, several adapters of one base, or a whole model, to ask it questions.

    Args:
        adapter: An `adapter/` folder, the run folder around it, a name on the Hub, or the folder of a whole model.
        adapters: Several adapters by name, which share their base in memory.
        model: A whole model: a `merged/` folder, or a base with its name on the Hub. Together with adapters it is their
            base, which answers without them under its own name.
        base: The base of the adapters; None: the one that they name.
        batch_size: Number of answers that are computed together.
        share_images: Compute the tokens of an image once for all questions about it in a batch, if that is exact.
        model_args: Keys of `model_args` in place of the saved ones, such as `load_in_4bit=True` or `system="..."`.

    Raises:
        ConfigError: A folder does not exist or has another content, or adapters have different bases.
    """
    check_packages()
    given = {} if adapter is None else {name_of(adapter): adapter}
    sources = model_sources({**given, **(adapters or {})}, model, base, **model_args)
    return load_sources(sources, batch_size, share_images)


def load_model(args: ModelArgs, batch_size: int) -> LoadedModel:
    """Load the model of `args`, alone, onto the best device."""
    return load_sources({name_of(args.adapter_path or args.model_name_or_path): args}, batch_size)


def load_sources(sources: Mapping[str, ModelArgs], batch_size: int, share_images: bool = True) -> LoadedModel:
    """Load the models of `model_sources` onto the best device."""
    model, variants = load_variants(sources, best_hardware())
    return LoadedModel(model, variants, batch_size, share_images)


def model_sources(
    adapters: Mapping[str, str | Path],
    model: str | Path | None = None,
    base: str | Path | None = None,
    **model_args: Any,
) -> dict[str, ModelArgs]:
    """Return the arguments of the models that share one base, by name; see `load`."""
    if not adapters and model is None:
        raise ConfigError("no model is named: pass an adapter/ folder, or a whole model")
    if model is not None and base is not None and adapters:
        raise ConfigError("the model is the base of the adapters: pass one of model and base")
    under = model if base is None else base
    sources = {}
    for name, path in adapters.items():
        if is_whole_model(path) and len(adapters) == 1 and under is None:
            return {name: whole_model_args(str(path), **model_args)}
        sources[name] = adapter_args(str(path), None if under is None else str(under), **model_args)
    if model is not None:
        name = name_of(model)
        if name in sources:
            raise ConfigError(f"an adapter has the name of its base, '{name}': choose another name")
        trained = next(iter(sources.values()), None)
        if trained is None:
            sources[name] = whole_model_args(str(model), **model_args)
        else:
            # It is loaded as the adapters were trained, for example with their size of images.
            sources[name] = replace(trained, adapter_path=None)
    return sources


def is_whole_model(path: str | Path) -> bool:
    """Return True for the folder of a whole model, which contains no adapter."""
    folder = Path(local_name(str(path)))
    holds_adapter = (folder / ADAPTER_CONFIG).is_file() or (folder / ADAPTER).is_dir()
    return (folder / MODEL_CONFIG).is_file() and not holds_adapter


def name_of(path: str | Path) -> str:
    """Return the name of a model: that of its config for a folder in `exp`, or else of its folder."""
    parts = [part for part in Path(path).parts if part not in _INNER and not _DATE.fullmatch(part)]
    return parts[-1] if parts and parts[-1] not in ("/", "..", ".") else Path(path).resolve().name
