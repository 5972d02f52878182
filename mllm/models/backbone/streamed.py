"""Models whose large weights stay in their files: read where a forward needs them, and let go again.

What such a model needs of memory is its largest weight, not the sum of them. `load_model` opens one where its device is
`STORED`; everything small, and what is not the weight of a layer, is loaded as always.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import GENERATION_CONFIG_NAME

STORED: Final = "disk"
"""The `device` of a model whose large weights stay in their files."""
LARGE = 2**13
"""Numbers in a weight from which on it stays in its file."""
TABLE = 2**24
"""The same for embeddings that are not the vocabulary's: positions are resampled, so they must be at hand."""
TILE = 2**26
"""Numbers of a weight that are read at once; the vocabulary's projection has ten times as many."""
PROJECTOR = ".multi_modal_projector."
"""In the names of modules that train in full, and are therefore loaded."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Unstreamable(Exception):  # noqa: N818 - a reason to go another way, no error
    """Why a checkpoint cannot be used from its files."""


class StoredWeight(nn.Parameter):
    """A weight that lies in a file; in memory one NaN stands for all of its numbers, so none is used unread."""

    file: Path
    key: str

    @classmethod
    def at(cls, file: Path, key: str, shape: torch.Size, dtype: torch.dtype) -> StoredWeight:
        """The weight under `key` of a safetensors file, to be computed with in `dtype`."""
        weight = cls(torch.full((), torch.nan, dtype=dtype).expand(shape), requires_grad=False)
        weight.file, weight.key = file, key
        return weight

    def read(self) -> Tensor:
        """The numbers as they are stored: a view of the file, of which memory holds what is touched."""
        return read_tensor(self.file, self.key)


def read_tensor(file: Path, key: str) -> Tensor:
    """One tensor of a safetensors file, mapped and not copied."""
    with safe_open(file, "pt") as opened:
        tensor: Tensor = opened.get_tensor(key)
    return tensor


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order; raises `Unstreamable` where it has none."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise Unstreamable("the checkpoint has no safetensors files")
    return [folder / name for name in sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))]


def own_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters and buffers that `model` saves, under the names that they have without adapters."""
    tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in tensors.items()
        if not any(part.startswith("lora_") for part in name.split("."))
    }


def stored_names(model: PreTrainedModel, folder: Path) -> dict[Path, dict[str, str | None]]:
    """For each weight file the keys in it, each with the name that it has in `model`; None where it has none.

    The names are those of `from_pretrained`, whether or not `model` has adapters by now. Raises `Unstreamable` where
    loading would do more than rename.
    """
    known = own_tensors(model)
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    found: dict[Path, dict[str, str | None]] = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as opened:
            keys = sorted(opened.keys())
        found[file] = {}
        for key in keys:
            prefix = model.base_model_prefix
            name, converted = rename_source_key(key, renamings, converters, prefix, known)
            if name not in known and key in known:
                name, converted = key, None
            if name in known and converted is not None:
                raise Unstreamable(f"transformers rearranges {key} while it loads it")
            found[file][key] = name if name in known else None
    return found


def empty_model(kind: Any, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """The model `kind` (a class or an Auto class) of a config: buffers at hand, parameters without memory."""
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    with init_empty_weights(include_buffers=False):
        model = kind._from_config(config, **options) if is_model else kind.from_config(config, **options)
    assert isinstance(model, PreTrainedModel)
    return model


def open_stored(kind: Any, folder: str | Path, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """The model that `kind.from_pretrained(folder)` gives, its large weights left in their files.

    `folder` is on this machine. Raises `Unstreamable` for what has to be loaded as always.
    """
    model = empty_model(kind, config, **options)
    known = own_tensors(model)
    missing = set(known)
    modules = dict(model.named_modules())
    for file, names in stored_names(model, Path(folder)).items():
        with safe_open(file, "pt") as opened:
            for key, name in names.items():
                if name is None:
                    continue
                module, _, leaf = name.rpartition(".")
                owner, own = modules[module], known[name]
                shape = torch.Size(opened.get_slice(key).get_shape())
                if own.shape != shape:
                    raise Unstreamable(f"{key} has shape {tuple(shape)}, and config.json says {tuple(own.shape)}")
                missing.discard(name)
                if leaf == "weight" and shape.numel() >= LARGE and _reads_alone(model, module, owner):
                    owner._parameters[leaf] = StoredWeight.at(file, key, shape, own.dtype)
                    continue
                value = opened.get_tensor(key).to(own.dtype, copy=True)
                if leaf in owner._buffers:
                    owner._buffers[leaf] = value
                else:
                    owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    model.requires_grad_(False).eval()
    if missing:
        raise Unstreamable(f"its files lack {min(missing)}")
    if (Path(folder) / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _reads_alone(model: PreTrainedModel, name: str, owner: nn.Module) -> bool:
    """Whether nobody but a module's own forward asks for its weight, so that it can be left in its file."""
    if isinstance(owner, nn.Embedding):
        return owner is model.get_input_embeddings() or owner.num_embeddings * owner.embedding_dim >= TABLE
    return isinstance(owner, nn.Linear | nn.Conv2d) and PROJECTOR not in f".{name}."


@contextmanager
def reading(model: nn.Module) -> Iterator[None]:
    """Inside the block a forward of `model` reads what it needs from the files, and lets it go behind it."""
    wrapped = {id(layer.get_base_layer()) for layer in model.modules() if isinstance(layer, LoraLayer)}
    handles: list[Any] = []
    restored: list[tuple[nn.Module, StoredWeight]] = []
    for owner in model.modules():
        # With DoRA the adapter's layer itself reads the weight of the layer inside it.
        holder: Any = owner.get_base_layer() if isinstance(owner, LoraLayer) else owner
        weight = holder._parameters.get("weight")
        if not isinstance(weight, StoredWeight) or id(owner) in wrapped:
            continue
        restored.append((holder, weight))
        if type(owner) is nn.Linear and weight.numel() > TILE:
            owner.__dict__["forward"] = _tiled(owner, weight)
            continue
        handles += [
            owner.register_forward_pre_hook(_fetch(holder, weight)),
            owner.register_forward_hook(_release(holder, weight)),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for holder, weight in restored:
            holder.__dict__.pop("forward", None)
            holder._parameters["weight"] = weight


def _fetch(holder: nn.Module, weight: StoredWeight) -> Any:
    def fetch(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        stored = weight.read()
        if isinstance(holder, nn.Embedding):
            # Memory that is never written to takes no place, and few rows of a table are asked for.
            needed = torch.empty(weight.shape, dtype=weight.dtype)
            rows = arguments[0].unique()
            needed[rows] = stored[rows].to(weight.dtype)
        else:
            needed = stored.to(weight.dtype)
        holder._parameters["weight"] = nn.Parameter(needed, requires_grad=False)

    return fetch


def _release(holder: nn.Module, weight: StoredWeight) -> Any:
    def release(*_: Any) -> None:
        holder._parameters["weight"] = weight

    return release


def _tiled(linear: nn.Linear, weight: StoredWeight) -> Any:
    """The forward of a Linear layer that never has its whole weight in memory."""
    rows = max(1, TILE // weight.shape[1])

    def forward(hidden: Tensor) -> Tensor:
        parts = []
        for first in range(0, weight.shape[0], rows):
            tile = weight.read()[first : first + rows].to(hidden.dtype)
            parts.append(F.linear(hidden, tile))
        product = torch.cat(parts, dim=-1)
        return product if linear.bias is None else product + linear.bias

    return forward
