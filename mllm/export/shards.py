"""Writing a model's weights shard by shard, tensor by tensor: what is in memory is one tensor, not the model."""

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
"""What safetensors calls a dtype in its headers."""


@dataclass(frozen=True)
class Entry:
    """One tensor that is to be written, and where its values come from."""

    key: str
    """Its name in the file."""
    name: str
    """Its name in the model."""
    source: tuple[Path, str]
    """The file and the key of the base's tensor."""
    dtype: str
    """One of `DTYPES`."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return DTYPES[self.dtype].itemsize * torch.Size(self.shape).numel()


def write_shards(model: PreTrainedModel, base: Path, folder: Path) -> list[str]:
    """Writes the weights of a model opened from `base`, its adapters folded in, and gives the files' names.

    Every base file becomes one file of the same tensors under the same names in the same dtypes, unless `model` is only
    a part of the checkpoint: then they have the model's own names. What is loaded is written as it is now.
    """
    shards = [entries for entries in _planned(model, base) if entries]
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    current, total = own_tensors(model), len(shards)
    names = [SINGLE] if total == 1 else [f"model-{i + 1:05}-of-{total:05}.safetensors" for i in range(total)]
    sizes = [sum(entry.size for entry in entries) for entries in shards]
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="merging", leave=False, delay=3) as bar:
        for name, entries in zip(names, shards, strict=True):
            values = _counted(bar, ((entry, _value(layers, current, entry)) for entry in entries))
            write_safetensors(folder / name, entries, values)
    if total > 1:
        where = {entry.key: name for name, entries in zip(names, shards, strict=True) for entry in entries}
        parameters = sum(torch.Size(entry.shape).numel() for entries in shards for entry in entries)
        told = {"total_parameters": parameters, "total_size": sum(sizes)}
        write_json(folder / INDEX, {"metadata": told, "weight_map": dict(sorted(where.items()))})
    return names


def _counted(bar: Any, values: Iterator[tuple[Entry, Tensor]]) -> Iterator[Tensor]:
    for entry, value in values:
        yield value
        bar.update(entry.size)


def _planned(model: PreTrainedModel, base: Path) -> list[list[Entry]]:
    """What each file will hold, in the order in which it is written."""
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
                    raise ConfigError(f"{file}: {key} is stored as {dtype}, and merging knows {', '.join(DTYPES)}")
                shape = tuple(current[name].shape)
                entries.append(Entry(key if is_whole else name, name, (file, key), dtype, shape))
        # The widest first, as safetensors itself does: every tensor then begins at a multiple of its own width.
        shards.append(sorted(entries, key=lambda entry: (-DTYPES[entry.dtype].itemsize, entry.key)))
    return shards


def _value(layers: Mapping[str, Any], current: Mapping[str, Tensor], entry: Entry) -> Tensor:
    """The tensor that an entry stands for, in the dtype in which it is written."""
    layer = layers.get(entry.name)
    if layer is not None:
        value = _folded(layer, entry)
    elif isinstance(current[entry.name], StoredWeight):
        value = read_tensor(*entry.source)
    else:
        value = current[entry.name].detach()
    written = value.to(DTYPES[entry.dtype])
    if layer is not None and not bool(written.isfinite().all()):
        raise ConfigError(f"{entry.name} would hold NaN or infinity once the adapter is folded in; nothing was written")
    return written


def _folded(layer: Any, entry: Entry) -> Tensor:
    """A layer's weight with its active adapters folded in by PEFT, in fp32, whatever it is stored and computed in."""
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
    """Writes a safetensors file under a temporary name, one tensor after the other, and gives it its name at the end.

    The format is a length of 8 bytes, a header in JSON that is padded to 8 bytes, and the tensors' bytes one behind the
    other (https://github.com/huggingface/safetensors#format).
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
    """The dtype that most bytes of the files have."""
    bytes_of: Counter[str] = Counter()
    for name in names:
        with safe_open(folder / name, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - a file is no mapping
                lazy = opened.get_slice(key)
                bytes_of[lazy.get_dtype()] += DTYPES[lazy.get_dtype()].itemsize * torch.Size(lazy.get_shape()).numel()
    return DTYPES[bytes_of.most_common(1)[0][0]]
