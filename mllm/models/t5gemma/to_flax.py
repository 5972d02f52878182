"""Conversion of a folder of T5Gemma of transformers to an Orbax checkpoint that the package `gemma` loads."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm
from transformers import T5GemmaConfig

from mllm.errors import ConfigError
from mllm.files import replaced_folder
from mllm.models.backbone.load_errors import explained
from mllm.models.backbone.loading import load_config
from mllm.models.backbone.streamed import read_tensor
from mllm.models.backbone.weight_files import DTYPES as HEADER_DTYPES
from mllm.models.backbone.weight_files import weight_files
from mllm.models.t5gemma.config import dimensions_of
from mllm.models.t5gemma.layout import DECODER, EMBEDDING, Array, arrays
from mllm.models.t5gemma.orbax import DTYPES, import_orbax, write_checkpoint
from mllm.models.t5gemma.sizes import Dimensions, refuse_other_size
from mllm.models.t5gemma.tokenizer import tokenizers_of_transformers
from mllm.run_files import ADAPTER_CONFIG, MODEL_CONFIG

OUTPUT = "lm_head.out_proj.weight"
"""The output layer, which older files contain although it is the embedding of the decoder."""

logger = logging.getLogger(__name__)


def convert_to_flax(
    source: str | Path, folder: str | Path, *, size: str | None = None, tokenizer: str | None = None
) -> Path:
    """Convert the T5Gemma in the folder `source`, write an Orbax checkpoint to `folder`, and return the folder.

    One array is in memory at a time, and weights keep their dtype. Embeddings of published sizes are padded with rows
    of zeros to the number of rows in Flax.

    Args:
        source: Folder with config.json, safetensors files and a tokenizer.
        folder: Folder of the checkpoint.
        size: Published size that the checkpoint must have, such as 'b-b' (None: any).
        tokenizer: See `tokenizers_of_transformers`.

    Raises:
        ConfigError: `source` is not a whole T5Gemma, its config has values that the Flax model has not, its weights are
            incomplete, or there is no SentencePiece model.
    """
    source, folder = Path(source).expanduser(), Path(folder)
    dimensions = dimensions_of(str(source), _config(source))
    refuse_other_size(source, dimensions, size)
    import_orbax()
    weights = _Weights(source)
    found = list(arrays(dimensions))
    weights.check(found)
    tokenizers = tokenizers_of_transformers(source, tokenizer)
    written = {array.name: array for array in arrays(replace(dimensions, rows=dimensions.flax_rows))}
    total = sum(torch.Size(array.shape).numel() * weights.dtype(array).itemsize for array in written.values())
    stored = {array.name: array for array in found}
    with (
        replaced_folder(folder) as temporary,
        tqdm(total=total, unit="B", unit_scale=True, desc="converting", leave=False, delay=3) as bar,
    ):
        # Orbax creates the folder of a checkpoint, under a name of its own that a failure leaves.
        inner = temporary / "orbax"
        write_checkpoint(inner, written, lambda name: _padded(weights.read(stored[name]), written[name]), bar.update)
        for path in inner.iterdir():
            path.rename(temporary / path.name)
        inner.rmdir()
        tokenizers.write_pieces(temporary)
    _log_size(source, folder, dimensions)
    return folder


def _config(source: Path) -> T5GemmaConfig:
    """Return the config of a whole T5Gemma in a folder."""
    if (source / ADAPTER_CONFIG).is_file():
        raise ConfigError(
            f"--model {source} is a LoRA adapter, which has another form in Flax: merge it first with "
            f"`mllm merge --adapter {source} --out merged/`, and convert merged/"
        )
    if not (source / MODEL_CONFIG).is_file():
        raise ConfigError(f"--model {source} is not a folder with a config.json: it must be a folder of T5Gemma")
    config = load_config(str(source))
    if not isinstance(config, T5GemmaConfig):
        raise ConfigError(
            f"--model {source} is a '{config.model_type}' model, and only T5Gemma can be converted to Flax"
        )
    return config


class _Weights:
    """The weights in the safetensors files of a folder."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self._files: dict[str, Path] = {}
        self._headers: dict[str, tuple[tuple[int, ...], str]] = {}
        for file in weight_files(source):
            with explained(str(source)), safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    lazy = opened.get_slice(name)
                    self._files[name] = file
                    self._headers[name] = (tuple(lazy.get_shape()), lazy.get_dtype())
        if not self._files:
            raise ConfigError(f"--model {source} has no weights (*.safetensors)")

    def check(self, expected: list[Array]) -> None:
        """Raise `ConfigError` if weights are missing, unknown, or have another shape or dtype."""
        shapes = {name: array.weight_shape for array in expected for name in array.weights}
        if missing := [name for name in shapes if name not in self._files]:
            raise ConfigError(f"--model {self.source} lacks {len(missing)} weights of T5Gemma (first {missing[0]})")
        if extra := sorted(self._files.keys() - shapes.keys() - {OUTPUT}):
            raise ConfigError(
                f"--model {self.source} has {len(extra)} weights that T5Gemma in Flax has not (first {extra[0]})"
            )
        for name, shape in shapes.items():
            if self._headers[name][0] != shape:
                raise ConfigError(f"--model {self.source}: {name} has the shape {self._headers[name][0]}, not {shape}")
        for array in expected:
            kinds = {self._headers[name][1] for name in array.weights}
            if len(kinds) > 1 or HEADER_DTYPES.get(*kinds) not in DTYPES.values():
                raise ConfigError(
                    f"--model {self.source}: {array.weights[0]} is {' or '.join(sorted(kinds))}; weights for Flax are "
                    "F32, BF16 or F16 (a quantized model cannot be converted)"
                )
        if OUTPUT in self._files and not torch.equal(
            self._read(OUTPUT), self._read(f"model.{DECODER}.embed_tokens.weight")
        ):
            raise ConfigError(f"--model {self.source}: {OUTPUT} is not the embedding of the decoder, as it is in Flax")

    def dtype(self, array: Array) -> torch.dtype:
        """Return the dtype of an array."""
        return HEADER_DTYPES[self._headers[array.weights[0]][1]]

    def read(self, array: Array) -> Tensor:
        """Return the values of an array."""
        return array.array_of([self._read(name) for name in array.weights])

    def _read(self, name: str) -> Tensor:
        with explained(str(self.source)):
            return read_tensor(self._files[name], name)


def _padded(value: Tensor, array: Array) -> Tensor:
    """Return the values of an array, with rows of zeros after the vocabulary of a table of embeddings."""
    if not array.name.endswith(EMBEDDING) or value.shape[0] == array.shape[0]:
        return value
    padded = value.new_zeros(array.shape)
    padded[: value.shape[0]] = value
    return padded


def _log_size(source: Path, folder: Path, dimensions: Dimensions) -> None:
    """Log which config of Flax loads the checkpoint."""
    if dimensions.size is not None:
        logger.info("%s (T5Gemma %s) converted to Flax in %s", source, dimensions.size, folder)
    else:
        logger.warning(
            "%s is a T5Gemma of no published size: %s has its arrays, and no T5GemmaPreset of gemma loads them",
            *(source, folder),
        )
