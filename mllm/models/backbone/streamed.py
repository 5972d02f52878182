"""Models whose large weights stay in their files: each is read when the forward pass needs it, then released.

The memory of such a model is that of its largest weight. `load_model` uses it for the device `STORED`. Small weights,
and tensors that are not the weight of a layer, are loaded.
"""

from __future__ import annotations

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

from mllm.models.adapters.names import adapter_parameter_names
from mllm.models.backbone.weight_files import weight_files

STORED: Final = "disk"
"""`device` of a model whose large weights stay in their files."""
LARGE = 2**13
"""Smallest number of elements of a weight that stays in its file."""
TABLE = 2**24
"""As `LARGE`, for embeddings other than the vocabulary: small ones are of positions, which may be resampled."""
TILE = 2**26
"""Number of elements that are read at a time; the output projection has ten times as many."""
PROJECTOR = ".multi_modal_projector."
"""Part of the names of modules that are trained in full, and are therefore loaded."""


class Unstreamable(Exception):  # noqa: N818 - a reason for another method, not an error
    """Reason why the weights of a checkpoint cannot stay in their files."""


class StoredWeight(nn.Parameter):
    """A weight in a file. In memory it is a single expanded NaN, so a use without reading is noticed."""

    file: Path
    key: str

    @classmethod
    def at(cls, file: Path, key: str, shape: torch.Size, dtype: torch.dtype) -> StoredWeight:
        """Return the weight `key` of a safetensors file, for computation in `dtype`."""
        weight = cls(torch.full((), torch.nan, dtype=dtype).expand(shape), requires_grad=False)
        weight.file, weight.key = file, key
        return weight

    def read(self) -> Tensor:
        """Return the stored tensor, mapped from the file: only accessed parts use memory."""
        return read_tensor(self.file, self.key)


def read_tensor(file: Path, key: str) -> Tensor:
    """Return one tensor of a safetensors file, mapped and not copied."""
    with safe_open(file, "pt") as opened:
        tensor: Tensor = opened.get_tensor(key)
    return tensor


def own_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the saved parameters and buffers of the base of `model`, under their names without adapters."""
    tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
    adapters = adapter_parameter_names(model)
    return {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items() if name not in adapters}


def stored_names(model: PreTrainedModel, folder: Path) -> dict[Path, dict[str, str | None]]:
    """Return the keys in each weight file with their names in `model`, None for keys that the model does not use.

    The names are those of `from_pretrained`, even if `model` has adapters. Raise `Unstreamable` if there are no
    safetensors files, or if loading would do more than rename.
    """
    known = own_tensors(model)
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    names: dict[Path, dict[str, str | None]] = {}
    files = weight_files(folder)
    if not files:
        raise Unstreamable("the checkpoint has no safetensors files")
    for file in files:
        with safe_open(file, "pt") as opened:
            keys = sorted(opened.keys())
        names[file] = {}
        for key in keys:
            prefix = model.base_model_prefix
            name, converted = rename_source_key(key, renamings, converters, prefix, known)
            if name not in known and key in known:
                name, converted = key, None
            if name in known and converted is not None:
                raise Unstreamable(f"transformers rearranges {key} while it loads it")
            names[file][key] = name if name in known else None
    return names


def empty_model(kind: Any, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """Return a model of class or Auto class `kind` from a config, with buffers but without memory for parameters."""
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    with init_empty_weights(include_buffers=False):
        model = kind._from_config(config, **options) if is_model else kind.from_config(config, **options)
    assert isinstance(model, PreTrainedModel)
    return model


def open_stored(kind: Any, folder: str | Path, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """Return the model of `kind.from_pretrained(folder)` with its large weights left in their files.

    `folder` is a local folder. Raise `Unstreamable` if the checkpoint must be loaded in the usual way.
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
                owner, empty = modules[module], known[name]
                shape = torch.Size(opened.get_slice(key).get_shape())
                if empty.shape != shape:
                    raise Unstreamable(f"{key} has shape {tuple(shape)}, but config.json requires {tuple(empty.shape)}")
                missing.discard(name)
                if leaf == "weight" and shape.numel() >= LARGE and _used_by_forward_only(model, module, owner):
                    owner._parameters[leaf] = StoredWeight.at(file, key, shape, empty.dtype)
                    continue
                value = opened.get_tensor(key).to(empty.dtype, copy=True)
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


def _used_by_forward_only(model: PreTrainedModel, name: str, owner: nn.Module) -> bool:
    """Return True if only the forward pass of the module uses its weight, so that it can stay in its file."""
    if isinstance(owner, nn.Embedding):
        return owner is model.get_input_embeddings() or owner.num_embeddings * owner.embedding_dim >= TABLE
    return isinstance(owner, nn.Linear | nn.Conv2d) and PROJECTOR not in f".{name}."


@contextmanager
def reading(model: nn.Module) -> Iterator[None]:
    """Read the weights of `model` from their files when a forward pass in the block needs them, then release them."""
    wrapped = {id(layer.get_base_layer()) for layer in model.modules() if isinstance(layer, LoraLayer)}
    handles: list[Any] = []
    restored: list[tuple[nn.Module, StoredWeight]] = []
    for owner in model.modules():
        # With DoRA, the layer of the adapter uses the weight of the layer inside it.
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
            # Memory that is never written is not allocated, and only few rows of a table are needed.
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
    """Return a forward function of a Linear layer that reads its weight in tiles."""
    rows = max(1, TILE // weight.shape[1])

    def forward(hidden: Tensor) -> Tensor:
        parts = []
        for first in range(0, weight.shape[0], rows):
            tile = weight.read()[first : first + rows].to(hidden.dtype)
            parts.append(F.linear(hidden, tile))
        product = torch.cat(parts, dim=-1)
        return product if linear.bias is None else product + linear.bias

    return forward
