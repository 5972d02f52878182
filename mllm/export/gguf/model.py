"""Export of a whole language model as one GGUF file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import isqrt, prod
from pathlib import Path
from typing import Any

import gguf

from mllm.errors import ConfigError
from mllm.export.gguf.families import Family, Gemma, Gemma2
from mllm.export.gguf.gemma3 import Gemma3, Gemma3n
from mllm.export.gguf.general import Origin, read_origin
from mllm.export.gguf.tokenizer import Vocabulary, read_vocabulary
from mllm.export.gguf.weights import Weights
from mllm.export.gguf.writer import TYPES, kind_of, log_narrow, write_gguf
from mllm.models.backbone.loading import load_config
from mllm.models.medgemma.medgemma_perception import POOL_KEY
from mllm.run_files import TRAINED as HEADS

logger = logging.getLogger(__name__)

FAMILIES: dict[str, type[Family]] = {
    "llama": Family,
    "gemma": Gemma,
    "gemma2": Gemma2,
    "gemma3": Gemma3,
    "gemma3_text": Gemma3,
    "gemma3n": Gemma3n,
    "gemma3n_text": Gemma3n,
}
"""`model_type` of config.json -> its family."""
REFUSED = {
    "vaultgemma": "llama.cpp has no VaultGemma, and its softcaps fit neither `gemma` nor `gemma2`",
    "t5gemma": "llama.cpp has no T5Gemma, whose encoder and decoder are Gemma 2's and not T5's",
    "t5gemma2": "llama.cpp has no T5Gemma 2, whose encoder and decoder are Gemma 3's and not T5's",
}
"""Unsupported model types with the reason."""


def export_model(folder: Path, out: Path, kind: str, *, name: str | None = None) -> Path:
    """Write the language model in `folder` to `out`; `kind`, a key of `TYPES`, is the type of the matrices.

    A few rows are in memory at a time. `name` is the name of the model in the file (default: name of the folder).
    Raises `ConfigError` with the reason if llama.cpp cannot run the model.
    """
    family, config = open_family(str(folder))
    vocabulary, origin = read_vocabulary(folder, family.config), read_origin(folder, config["model_type"], name)
    weights = Weights(folder)
    tensors = family.tensors(weights)
    rows = {tensor.name: tensor.shape[0] for tensor in tensors}
    if "token_embd.weight" not in rows:
        raise family.refuse("its embeddings are missing")
    vocabulary.fit(rows["token_embd.weight"])
    matrix_type, file_type = TYPES[kind]
    kinds = [kind_of(tensor, matrix_type) for tensor in tensors]
    log_narrow(tensors, kinds, matrix_type)

    def describe(writer: gguf.GGUFWriter) -> None:
        _describe(writer, origin, family, vocabulary)
        writer.add_size_label(gguf.size_label(sum(prod(tensor.shape) for tensor in tensors), 0, 0, 0))
        writer.add_file_type(file_type)

    write_gguf(out, family.name, describe, tensors, kinds)
    logger.info("%s: %d tensors of %s as %s", out, len(tensors), family.name, kind)
    return out


def open_family(source: str) -> tuple[Family, dict[str, Any]]:
    """Return the family of the language model of the checkpoint `source`, and its whole config.

    Reads only config.json. Raises `ConfigError` if the model is not supported.
    """
    if (Path(source) / HEADS).is_file():
        raise _has_heads(source)
    config = load_config(source)
    values = config.to_dict()
    refuse_foreign(source, values)
    family = FAMILIES[values["model_type"]](config.get_text_config().to_dict(), source)
    family.check()
    return family, values


def refuse_foreign(source: str, config: dict[str, Any]) -> None:
    """Raise `ConfigError` for a config that is not supported."""
    kind = config["model_type"]
    if kind not in FAMILIES:
        known = ", ".join(name for name in FAMILIES if not name.endswith("_text"))
        reason = REFUSED.get(kind, f"its type is {kind}, and supported are {known}")
        raise ConfigError(f"'{source}' cannot become a GGUF: {reason}")
    if POOL_KEY in config:
        raise _has_rectangles(source, config["mm_tokens_per_image"])
    if config.get("quantization_config"):
        raise ConfigError(f"'{source}' cannot become a GGUF: its weights are quantized; pass the full-precision model")


def refuse_settings(source: str, settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for `settings` of an mllm.json that llama.cpp does not support, merged or not."""
    if settings.get("part") == "vision":
        raise ConfigError(f"'{source}' cannot become a GGUF: it is a vision model, which generates no text")
    if settings.get("heads"):
        raise _has_heads(source)
    tokens = settings.get("image_token_len")
    if tokens is not None and isqrt(tokens) ** 2 != tokens:
        raise _has_rectangles(source, tokens)


def _has_heads(source: str) -> ConfigError:
    return ConfigError(f"'{source}' cannot become a GGUF: it has heads ({HEADS}), which llama.cpp cannot run")


def _has_rectangles(source: str, tokens: int) -> ConfigError:
    return ConfigError(
        f"'{source}' cannot become a GGUF: its images have {tokens} tokens from a rectangular pool, and llama.cpp "
        "supports only square pools; train with image_token_len 256, 64 or 16"
    )


def _describe(writer: gguf.GGUFWriter, origin: Origin, family: Family, vocabulary: Vocabulary) -> None:
    origin.describe(writer, "model")
    family.describe(writer)
    writer.add_vocab_size(len(vocabulary.tokens))
    vocabulary.describe(writer)
    origin.describe_use(writer)
