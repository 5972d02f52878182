"""Conversion of an Orbax checkpoint of T5Gemma in Flax to a folder that transformers loads."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig

from mllm.errors import ConfigError
from mllm.files import replaced_folder
from mllm.models.backbone.weight_files import DTYPES as HEADER_DTYPES
from mllm.models.backbone.weight_files import TensorHeader, file_names, write_index, write_safetensors
from mllm.models.t5gemma.config import build_config
from mllm.models.t5gemma.layout import DECODER, EMBEDDING, ENCODER, Array, arrays
from mllm.models.t5gemma.orbax import DTYPES, OrbaxCheckpoint, open_checkpoint
from mllm.models.t5gemma.sizes import Dimensions, Stack, refuse_other_size
from mllm.models.t5gemma.tokenizer import Tokenizers, tokenizers_of_flax

SHARD_SIZE = 5 * 10**9
"""Largest size of a file of weights in bytes, unless one array is larger."""
_HEADER_NAMES = {dtype: name for name, dtype in HEADER_DTYPES.items()}

logger = logging.getLogger(__name__)


def convert_from_flax(
    source: str | Path,
    folder: str | Path,
    *,
    size: str | None = None,
    tokenizer: str | None = None,
    instruction_tuned: bool = False,
    shard_size: int = SHARD_SIZE,
) -> Path:
    """Convert the Orbax checkpoint in `source`, write it to `folder`, and return the folder.

    One array is in memory at a time, and weights keep their dtype.

    Args:
        source: Folder of the checkpoint, published or written by Kauldron's trainer.
        folder: Folder of the converted model.
        size: Published size that the checkpoint must have, such as 'b-b' (None: any).
        tokenizer: See `tokenizers_of_flax`.
        instruction_tuned: True to write Gemma's chat template.
        shard_size: Largest size of a file of weights in bytes.

    Raises:
        ConfigError: `source` is not a checkpoint of T5Gemma or is incomplete, or there is no tokenizer.
    """
    source, folder = Path(source).expanduser(), Path(folder)
    with open_checkpoint(source) as checkpoint:
        dimensions = _dimensions(checkpoint)
        refuse_other_size(source, dimensions, size)
        found = list(arrays(dimensions))
        _refuse_other_arrays(checkpoint, found)
        tokenizers = tokenizers_of_flax(source, tokenizer, instruction_tuned=instruction_tuned)
        dimensions = replace(dimensions, rows=_used_rows(checkpoint, dimensions, tokenizers))
        with replaced_folder(folder) as temporary:
            main_dtype = _write_weights(checkpoint, list(arrays(dimensions)), temporary, shard_size)
            _write_companions(temporary, dimensions, main_dtype, tokenizers)
    logger.info("%s (T5Gemma %s) converted to transformers in %s", source, dimensions.size or "of its own size", folder)
    return folder


def _dimensions(checkpoint: OrbaxCheckpoint) -> Dimensions:
    """Return the dimensions of a checkpoint, which are those of its first layers."""
    if any("/lora/" in f"/{name}/" for name in checkpoint.arrays):
        raise ConfigError(
            f"{checkpoint.folder} contains the arrays of a LoRA, which has another form in transformers: add it to the "
            "weights in Flax first"
        )
    encoder, decoder = (_stack(checkpoint, side) for side in (ENCODER, DECODER))
    return Dimensions(encoder, decoder, _shape(checkpoint, f"{DECODER}/{EMBEDDING}", 2)[0])


def _stack(checkpoint: OrbaxCheckpoint, side: str) -> Stack:
    """Return the dimensions of the encoder or the decoder."""
    first = f"{side}/layer_0"
    heads, head_dim, width = _shape(checkpoint, f"{first}/attn/attn_vec_einsum/w", 3)
    hidden = _shape(checkpoint, f"{first}/mlp/linear", 2)[0]
    gating = _shape(checkpoint, f"{first}/mlp/gating_einsum", 3)[1:]
    grouped = f"{first}/attn/kv_einsum/w"
    numbers = [re.match(rf"{side}/layer_(\d+)/", name) for name in checkpoint.arrays]
    return Stack(
        layers=1 + max(int(number[1]) for number in numbers if number),
        width=width,
        hidden=hidden,
        heads=heads,
        head_dim=head_dim,
        kv_heads=_shape(checkpoint, grouped, 4)[1] if grouped in checkpoint.arrays else heads,
        hidden_first=gating == (hidden, width) and hidden != width,
    )


def _shape(checkpoint: OrbaxCheckpoint, name: str, rank: int) -> tuple[int, ...]:
    """Return the shape of an array that every T5Gemma has."""
    stored = checkpoint.arrays.get(name)
    if stored is None or len(stored.shape) != rank:
        raise ConfigError(
            f"{checkpoint.folder} is not a checkpoint of T5Gemma in Flax: it has no array {name} of {rank} dimensions "
            f"(its first array is {min(checkpoint.arrays, default='absent')})"
        )
    return stored.shape


def _refuse_other_arrays(checkpoint: OrbaxCheckpoint, expected: list[Array]) -> None:
    """Raise `ConfigError` if arrays are missing, unknown, or have another shape or dtype."""
    stored = checkpoint.arrays
    missing = [array.name for array in expected if array.name not in stored]
    if missing:
        raise ConfigError(
            f"{checkpoint.folder} lacks {len(missing)} arrays of T5Gemma (first {missing[0]}): download it again"
        )
    if extra := sorted(stored.keys() - {array.name for array in expected}):
        raise ConfigError(f"{checkpoint.folder} has {len(extra)} arrays that T5Gemma has not (first {extra[0]})")
    for array in expected:
        shape, dtype = stored[array.name].shape, stored[array.name].dtype
        if shape != array.shape:
            raise ConfigError(f"{checkpoint.folder}: {array.name} has the shape {shape}, not {array.shape}")
        if dtype not in DTYPES:
            raise ConfigError(f"{checkpoint.folder}: {array.name} is {dtype}, and weights are {', '.join(DTYPES)}")


def _used_rows(checkpoint: OrbaxCheckpoint, dimensions: Dimensions, tokenizers: Tokenizers) -> int:
    """Return the rows of the embeddings without the padding, which are rows of zeros after the vocabulary.

    `to_flax` adds the padding of a published size again. Rows with other values, and all rows of other sizes, are kept.
    """
    vocabulary, rows = len(tokenizers.converted), dimensions.rows
    if vocabulary > rows:
        raise ConfigError(f"the tokenizer has {vocabulary} tokens, and {checkpoint.folder} has embeddings for {rows}")
    if vocabulary == rows or dimensions.size is None:
        return rows
    padding = (checkpoint.read(f"{side}/{EMBEDDING}")[vocabulary:] for side in (ENCODER, DECODER))
    return vocabulary if all(_is_zero(table) for table in padding) else rows


def _is_zero(tensor: Tensor) -> bool:
    """Return True if all bits of a tensor are 0."""
    return not tensor.view(torch.int16).any()


def _write_weights(checkpoint: OrbaxCheckpoint, found: list[Array], folder: Path, shard_size: int) -> str:
    """Write the weights and their index, and return the dtype with the most bytes, by its name in PyTorch."""
    headers = {array.name: _headers(array, checkpoint.arrays[array.name].dtype) for array in found}
    shards = _divide(found, {name: sum(one.size for one in parts) for name, parts in headers.items()}, shard_size)
    weight_map: dict[str, str] = {}
    bytes_of: dict[str, int] = {}
    total = sum(header.size for parts in headers.values() for header in parts)
    with tqdm(total=total, unit="B", unit_scale=True, desc="converting", leave=False, delay=3) as bar:
        for file, shard in zip(file_names(len(shards)), shards, strict=True):
            # Elements of tensors are aligned to their size if larger elements come first.
            shard = sorted(shard, key=lambda array: -DTYPES[checkpoint.arrays[array.name].dtype].itemsize)
            entries = [header for array in shard for header in headers[array.name]]
            write_safetensors(folder / file, entries, _weights(checkpoint, shard), bar.update)
            weight_map |= dict.fromkeys((header.name for header in entries), file)
            for header in entries:
                bytes_of[header.dtype] = bytes_of.get(header.dtype, 0) + header.size
    if len(shards) > 1:
        write_index(folder, weight_map, total_size=total)
    return str(HEADER_DTYPES[max(bytes_of, key=bytes_of.__getitem__)]).removeprefix("torch.")


def _headers(array: Array, dtype: str) -> list[TensorHeader]:
    """Return the headers of the weights of an array."""
    return [TensorHeader(weight, _HEADER_NAMES[DTYPES[dtype]], array.weight_shape) for weight in array.weights]


def _divide(found: list[Array], sizes: Mapping[str, int], limit: int) -> list[list[Array]]:
    """Divide arrays into files of at most `limit` bytes."""
    shards: list[list[Array]] = [[]]
    size = 0
    for array in found:
        if shards[-1] and size + sizes[array.name] > limit:
            shards.append([])
            size = 0
        shards[-1].append(array)
        size += sizes[array.name]
    return shards


def _weights(checkpoint: OrbaxCheckpoint, shard: list[Array]) -> Iterator[Tensor]:
    """Yield the weights of a file, with one array in memory at a time."""
    for array in shard:
        value = checkpoint.read(array.name)
        if array.name.endswith(EMBEDDING):
            value = value[: array.shape[0]]
        yield from array.weights_of(value)


def _write_companions(folder: Path, dimensions: Dimensions, dtype: str, tokenizers: Tokenizers) -> None:
    """Write config, settings of generation and tokenizer."""
    config = build_config(dimensions, dtype, tokenizers.end_ids)
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        decoder_start_token_id=config.bos_token_id,
        eos_token_id=tokenizers.end_ids,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)
    tokenizers.write(folder)
