"""`heads.safetensors`: what trained beside the LoRA, kept next to the adapter or the merged model."""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mllm.errors import ConfigError
from mllm.structures import Model

logger = logging.getLogger(__name__)

FILE = "heads.safetensors"
IN_MERGED = ("heads.", "fusion.")
"""What a merged model keeps there; rows and projector are in its weights."""


def write_trained(model: Model, folder: str | Path, parts: tuple[str, ...] = ()) -> Path | None:
    """Writes the trained tensors beside the LoRA whose names begin with one of `parts` (none: all of them).

    Gives None where there are none.
    """
    state = {
        name: tensor.cpu().contiguous()
        for name, tensor in model.trained_state().items()
        if not parts or name.startswith(parts)
    }
    if not state:
        return None
    path = Path(folder) / FILE
    save_file(state, path, metadata={"format": "pt"})
    return path


def load_trained(model: Model, folder: str | Path, parts: tuple[str, ...] = (), headless: bool = False) -> None:
    """Loads what `write_trained` wrote into an equal model; raises `ConfigError` where it differs.

    `parts` are those that the folder holds where it does not hold all: the rest is in the weights already. Where there
    is no such file, as beside an adapter of another tool, all that trains beside the LoRA stays as it begins. A
    `headless` model, as a teacher is, leaves the folder's heads out.
    """
    path = Path(folder) / FILE
    state = model.trained_state()
    if not path.is_file():
        if state:
            logger.info("%s has no %s: what trains beside its LoRA begins anew", folder, FILE)
        return
    kept = {name: tensor for name, tensor in state.items() if parts and not name.startswith(parts)}
    try:
        read = {name: tensor for name, tensor in _read(path).items() if not (headless and name.startswith("heads."))}
        model.load_trained_state(read | kept)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); export the run again") from error
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise ConfigError(f"{path} holds NaN or infinity; take an earlier checkpoint")
    return state
