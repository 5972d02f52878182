"""Reader and writer of `heads.safetensors`: the trained tensors that are not part of an adapter."""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mllm.errors import ConfigError
from mllm.models.adapters.written import save_compared
from mllm.protocols import Model
from mllm.run_files import TRAINED

logger = logging.getLogger(__name__)

IN_MERGED = ("heads.", "fusion.")
"""Prefixes of the tensors in the file of a merged model. Its weights contain the others (rows, projector)."""


def write_trained(model: Model, folder: str | Path, prefixes: tuple[str, ...] = ()) -> Path | None:
    """Write the trained tensors outside the adapter whose names begin with one of `prefixes`, or all of them.

    Return the path of the file, or None if there are no such tensors. Raise `ConfigError` if the file, read back,
    differs from the tensors.
    """
    state = {
        name: tensor for name, tensor in model.trained_state().items() if not prefixes or name.startswith(prefixes)
    }
    if not state:
        return None
    path = Path(folder) / TRAINED
    save_compared(path, state)
    return path


def load_trained(model: Model, folder: str | Path, prefixes: tuple[str, ...] = (), headless: bool = False) -> None:
    """Load the file of `write_trained` into an equal model. Raise `ConfigError` if names or shapes differ.

    With `prefixes`, the file contains only tensors whose names begin with one of them; the other tensors of the model
    stay. Without a file, as with an adapter of another program, all tensors keep their initial values. A `headless`
    model, such as a teacher, ignores the heads in the file.
    """
    path = Path(folder) / TRAINED
    state = model.trained_state()
    if not path.is_file():
        if state:
            logger.info("%s has no %s: trained tensors outside the LoRA keep their initial values", folder, TRAINED)
        return
    unchanged = {name: tensor for name, tensor in state.items() if prefixes and not name.startswith(prefixes)}
    try:
        loaded = {name: tensor for name, tensor in _read(path).items() if not (headless and name.startswith("heads."))}
        model.load_trained_state(loaded | unchanged)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file. Raise `ConfigError` if it cannot be read or contains non-finite values."""
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); export the run again") from error
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise ConfigError(f"{path} contains NaN or infinity; use an earlier checkpoint")
    return state
