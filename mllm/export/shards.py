"""Writer of merged weights, shard by shard, with one tensor in memory at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from mllm.errors import ConfigError
from mllm.models.backbone.streamed import StoredWeight, own_tensors, read_tensor, stored_names
from mllm.models.backbone.weight_files import DTYPES, TensorHeader, file_names, write_index, write_safetensors


@dataclass(frozen=True)
class Entry:
    """One tensor of an output file, and the source of its values."""

    header: TensorHeader
    """Header of the tensor in the output file."""
    name: str
    """Name of the tensor in the model."""
    source: tuple[Path, str]
    """File and key of the tensor in the base."""


def write_shards(model: PreTrainedModel, base: Path, folder: Path) -> list[str]:
    """Write the weights of a model opened from `base`, with its adapters merged, and return the names of the files.

    Each file of the base becomes one file with the same tensors, names and dtypes. If `model` is only a part of the
    checkpoint, the names are those of the model. Loaded tensors are written with their current values.
    """
    shards = [entries for entries in _plan_shards(model, base) if entries]
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    current, names = own_tensors(model), file_names(len(shards))
    files = {name: [entry.header for entry in entries] for name, entries in zip(names, shards, strict=True)}
    size = sum(header.size for headers in files.values() for header in headers)
    with tqdm(total=size, unit="B", unit_scale=True, desc="merging", leave=False, delay=3) as bar:
        for (name, headers), entries in zip(files.items(), shards, strict=True):
            values = (_value(layers, current, entry) for entry in entries)
            write_safetensors(folder / name, headers, values, bar.update)
    if len(files) > 1:
        weight_map = {header.name: name for name, headers in files.items() for header in headers}
        parameters = sum(header.elements for headers in files.values() for header in headers)
        write_index(folder, weight_map, total_parameters=parameters, total_size=size)
    return names


def _plan_shards(model: PreTrainedModel, base: Path) -> list[list[Entry]]:
    """Return the tensors of each output file, in the order of writing."""
    current = own_tensors(model)
    is_whole = type(model).__name__ in (json.loads((base / "config.json").read_text()).get("architectures") or [])
    shards = []
    for file, names in stored_names(model, base).items():
        entries = []
        with safe_open(file, "pt") as opened:
            for key, name in names.items():
                if name is None:
                    continue
                dtype = opened.get_slice(key).get_dtype()
                if dtype not in DTYPES:
                    raise ConfigError(f"{file}: {key} is stored as {dtype}, and merging supports {', '.join(DTYPES)}")
                header = TensorHeader(key if is_whole else name, dtype, tuple(current[name].shape))
                entries.append(Entry(header, name, (file, key)))
        shards.append(sorted(entries, key=lambda entry: entry.header.order))
    return shards


def _value(layers: Mapping[str, Any], current: Mapping[str, Tensor], entry: Entry) -> Tensor:
    """Return the values of an entry in the dtype of its header."""
    layer = layers.get(entry.name)
    if layer is not None:
        value = _merged_weight(layer, entry)
    elif isinstance(current[entry.name], StoredWeight):
        value = read_tensor(*entry.source)
    else:
        value = current[entry.name].detach()
    written = value.to(DTYPES[entry.header.dtype])
    assert written.shape == entry.header.shape, entry.name
    if layer is not None and not bool(written.isfinite().all()):
        raise ConfigError(f"{entry.name} would contain NaN or infinity after the merge; nothing was written")
    return written


def _merged_weight(layer: Any, entry: Entry) -> Tensor:
    """Return the weight of a layer with its active adapters merged by PEFT, always computed in fp32."""
    holder = layer.get_base_layer()
    unmerged = holder._parameters["weight"]
    weight = nn.Parameter(read_tensor(*entry.source).to(torch.float32, copy=True), requires_grad=False)
    holder._parameters["weight"] = weight
    try:
        with torch.no_grad():
            layer.merge(safe_merge=False)
        return holder._parameters["weight"].detach()
    finally:
        holder._parameters["weight"] = unmerged
        layer.merged_adapters.clear()


def main_dtype(folder: Path, names: Sequence[str]) -> torch.dtype:
    """Return the dtype of the largest share of the bytes in the files."""
    bytes_of: Counter[str] = Counter()
    for name in names:
        with safe_open(folder / name, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a mapping
                lazy = opened.get_slice(key)
                bytes_of[lazy.get_dtype()] += DTYPES[lazy.get_dtype()].itemsize * torch.Size(lazy.get_shape()).numel()
    return DTYPES[bytes_of.most_common(1)[0][0]]
