"""Writer of merged weights, shard by shard, with one tensor in memory at a time."""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from mllm.files import write_json
from mllm.models.backbone.streamed import INDEX, SINGLE, StoredWeight, own_tensors, read_tensor, stored_names

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The names of dtypes in the headers of safetensors files."""


@dataclass(frozen=True)
class Entry:
    """One tensor of an output file, and the source of its values."""

    key: str
    """Its name in the output file."""
    name: str
    """Its name in the model."""
    source: tuple[Path, str]
    """The file and the key of the tensor in the base."""
    dtype: str
    """One of `DTYPES`."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The size in bytes."""
        return DTYPES[self.dtype].itemsize * torch.Size(self.shape).numel()


def write_shards(model: PreTrainedModel, base: Path, folder: Path) -> list[str]:
    """Write the weights of a model opened from `base`, with its adapters merged, and return the names of the files.

    Each file of the base becomes one file with the same tensors, names and dtypes. If `model` is only a part of the
    checkpoint, the names are those of the model. Loaded tensors are written with their current values.
    """
    shards = [entries for entries in _plan_shards(model, base) if entries]
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    current, total = own_tensors(model), len(shards)
    names = [SINGLE] if total == 1 else [f"model-{i + 1:05}-of-{total:05}.safetensors" for i in range(total)]
    sizes = [sum(entry.size for entry in entries) for entries in shards]
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="merging", leave=False, delay=3) as bar:
        for name, entries in zip(names, shards, strict=True):
            values = _with_progress(bar, ((entry, _value(layers, current, entry)) for entry in entries))
            write_safetensors(folder / name, entries, values)
    if total > 1:
        weight_map = {entry.key: name for name, entries in zip(names, shards, strict=True) for entry in entries}
        parameters = sum(torch.Size(entry.shape).numel() for entries in shards for entry in entries)
        metadata = {"total_parameters": parameters, "total_size": sum(sizes)}
        write_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})
    return names


def _with_progress(bar: Any, values: Iterator[tuple[Entry, Tensor]]) -> Iterator[Tensor]:
    for entry, value in values:
        yield value
        bar.update(entry.size)


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
                shape = tuple(current[name].shape)
                entries.append(Entry(key if is_whole else name, name, (file, key), dtype, shape))
        # The widest dtype first, as in safetensors: every tensor then begins at a multiple of its item size.
        shards.append(sorted(entries, key=lambda entry: (-DTYPES[entry.dtype].itemsize, entry.key)))
    return shards


def _value(layers: Mapping[str, Any], current: Mapping[str, Tensor], entry: Entry) -> Tensor:
    """Return the values of an entry in the dtype in which they are written."""
    layer = layers.get(entry.name)
    if layer is not None:
        value = _merged_weight(layer, entry)
    elif isinstance(current[entry.name], StoredWeight):
        value = read_tensor(*entry.source)
    else:
        value = current[entry.name].detach()
    written = value.to(DTYPES[entry.dtype])
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


def write_safetensors(path: Path, entries: Sequence[Entry], values: Iterable[Tensor]) -> None:
    """Write a safetensors file under a temporary name, tensor by tensor, and rename it at the end.

    The format is a length of 8 bytes, a JSON header that is padded to 8 bytes, and the bytes of the tensors
    (https://github.com/huggingface/safetensors#format).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        header[entry.key] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.size],
        }
        end += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry, value in zip(entries, values, strict=True):
            assert value.shape == entry.shape and value.dtype == DTYPES[entry.dtype], entry.key
            if entry.size:
                file.write(value.contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def main_dtype(folder: Path, names: Sequence[str]) -> torch.dtype:
    """Return the dtype of the largest share of the bytes in the files."""
    bytes_of: Counter[str] = Counter()
    for name in names:
        with safe_open(folder / name, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a mapping
                lazy = opened.get_slice(key)
                bytes_of[lazy.get_dtype()] += DTYPES[lazy.get_dtype()].itemsize * torch.Size(lazy.get_shape()).numel()
    return DTYPES[bytes_of.most_common(1)[0][0]]
