"""Conversion of a tokenizer to the metadata of GGUF, from `tokenizer.model` or else `tokenizer.json`."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mllm.errors import ConfigError
from mllm.export.gguf.merges import merge_scores
from mllm.export.gguf.tokenizer_json import read_tokenizer_json

logger = logging.getLogger(__name__)

Type = gguf.TokenType
SPECIALS = ("bos", "eos", "unk", "pad", "mask")
END_OF_TURN = ("<end_of_turn>", "<|eot_id|>", "<|im_end|>", "<|end|>")
"""Tokens that end a turn. Generation stops at them, in addition to the end-of-text token."""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {(LLAMA3, True): "llama-bpe", (LLAMA3, False): "smaug-bpe", (QWEN2, False): "qwen2", (None, False): "gpt-2"}
"""Split pattern of a byte-level tokenizer and its `ignore_merges` -> the name in llama.cpp."""


@dataclass
class Vocabulary:
    """A tokenizer in the form of the keys `tokenizer.ggml.*`."""

    model: str
    """'llama': pieces joined by score; 'gpt2': bytes joined by merges; 'gemma4': pieces joined by merges."""
    pre: str
    tokens: list[str]
    types: list[Type]
    scores: list[float] | None = None
    merges: list[str] | None = None
    space_prefix: bool = False
    add_bos: bool = True
    add_eos: bool = False
    ids: dict[str, int] = field(default_factory=dict)
    """'bos', 'eos', 'unk', 'pad', 'mask', 'eot' -> the token's id."""

    def fit(self, rows: int) -> None:
        """Match the number of tokens to the `rows` of the embeddings: add unused tokens, or drop the last ones."""
        missing = rows - len(self.tokens)
        self.tokens = self.tokens[:rows] + [f"[PAD{len(self.tokens) + index}]" for index in range(missing)]
        self.types = self.types[:rows] + [Type.UNUSED] * missing
        if self.scores is not None:
            self.scores = self.scores[:rows] + [-1e6] * missing
        self.ids = {name: index for name, index in self.ids.items() if index < rows}

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Add the tokenizer to the metadata."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        writer.add_add_space_prefix(self.space_prefix)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        adders = {
            "bos": writer.add_bos_token_id,
            "eos": writer.add_eos_token_id,
            "eot": writer.add_eot_token_id,
            "unk": writer.add_unk_token_id,
            "pad": writer.add_pad_token_id,
            "mask": writer.add_mask_token_id,
        }
        for name, index in self.ids.items():
            adders[name](index)


def read_vocabulary(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """Return the tokenizer in the folder of a checkpoint.

    `config` contains the ids of special tokens that no other file contains. Raises `ConfigError` for a missing or
    unsupported tokenizer.
    """
    settings = _json(folder / "tokenizer_config.json")
    fast, merges = read_tokenizer_json(folder / "tokenizer.json")
    if (folder / "tokenizer.model").is_file():
        vocabulary = _from_sentencepiece(folder / "tokenizer.model", settings)
    elif fast:
        vocabulary = _from_fast(folder / "tokenizer.json", fast, merges)
    else:
        raise ConfigError(f"'{folder}' contains neither tokenizer.model nor tokenizer.json: save the tokenizer into it")
    added = {entry["id"]: entry for entry in fast.get("added_tokens", [])}
    added |= {int(index): entry for index, entry in settings.get("added_tokens_decoder", {}).items()}
    _overlay(vocabulary, added)
    known = {token: index for index, token in enumerate(vocabulary.tokens)}
    for name in SPECIALS:
        token = settings.get(f"{name}_token")
        token = token["content"] if isinstance(token, dict) else token
        index = known.get(token) if token else _first(config.get(f"{name}_token_id"))
        if index is not None:
            vocabulary.ids[name] = index
    ends = [known[token] for token in END_OF_TURN if token in known]
    if ends and ends[0] != vocabulary.ids.get("eos"):
        vocabulary.ids["eot"] = ends[0]
    return vocabulary


def _from_sentencepiece(path: Path, settings: Mapping[str, Any]) -> Vocabulary:
    """Return the pieces of a SentencePiece model with their scores and types."""
    from sentencepiece import SentencePieceProcessor

    messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")  # generated at import
    processor = SentencePieceProcessor(model_file=str(path))
    model = messages.ModelProto()
    model.ParseFromString(path.read_bytes())
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise ConfigError(f"{path} is not a byte-pair model; other types are not supported")
    tokens, types, scores = [], [], []
    for index in range(processor.vocab_size()):
        kind = Type.NORMAL
        if processor.is_unknown(index):
            kind = Type.UNKNOWN
        elif processor.is_control(index):
            kind = Type.CONTROL
        elif processor.is_unused(index):
            kind = Type.UNUSED
        elif processor.is_byte(index):
            kind = Type.BYTE
        elif model.pieces[index].type == model.SentencePiece.USER_DEFINED:
            kind = Type.USER_DEFINED
        tokens.append(processor.id_to_piece(index))
        types.append(kind)
        scores.append(processor.get_score(index))
    prefix = bool(model.normalizer_spec.add_dummy_prefix) and settings.get("add_prefix_space") is not False
    # The files of Gemma request a space prefix that its tokenizers do not add.
    gemma = "Gemma" in str(settings.get("tokenizer_class"))
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        types=types,
        scores=scores,
        space_prefix=prefix and not gemma,
        add_bos=settings.get("add_bos_token") is not False,
        add_eos=bool(settings.get("add_eos_token")),
    )


def _from_fast(path: Path, fast: Mapping[str, Any], merges: np.ndarray) -> Vocabulary:
    """Return a byte-pair tokenizer of the package tokenizers, on pieces or on bytes."""
    model = fast["model"]
    if model.get("type") != "BPE":
        raise ConfigError(f"{path} is of type {model.get('type')}; only byte-pair tokenizers are supported")
    size = max(model["vocab"].values()) + 1
    tokens, types = [f"[UNUSED{index}]" for index in range(size)], [Type.UNUSED] * size
    for token, index in model["vocab"].items():
        is_byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        tokens[index], types[index] = token, Type.BYTE if is_byte else Type.NORMAL
    if model.get("unk_token") in model["vocab"]:
        types[model["vocab"][model["unk_token"]]] = Type.UNKNOWN
    before, after = _specials_around(fast)
    vocabulary = Vocabulary("gpt2", "", tokens, types, add_bos=before, add_eos=after)
    if not model.get("byte_fallback"):
        vocabulary.pre = _split_of(path, fast)
        vocabulary.merges = _as_text(tokens, merges)
        return vocabulary
    specials = {entry["content"] for entry in fast.get("added_tokens", [])}
    scores = merge_scores(model["vocab"], merges, specials)
    vocabulary.space_prefix = _has_space_prefix(fast)
    if scores is not None:
        vocabulary.model, vocabulary.pre = "llama", "default"
        vocabulary.scores = [scores.get(token, -1e6) for token in tokens]
        return vocabulary
    if vocabulary.space_prefix:
        raise ConfigError(
            f"{path} joins pieces in an order that llama.cpp does not support; add tokenizer.model to its folder"
        )
    logger.info("%s: pieces are joined by merges, which llama.cpp before 2026 does not support", path)
    vocabulary.model, vocabulary.pre = "gemma4", "gemma4"
    vocabulary.merges = _as_text(tokens, merges)
    return vocabulary


def _as_text(tokens: list[str], merges: np.ndarray) -> list[str]:
    return [f"{tokens[left]} {tokens[right]}" for left, right in merges.tolist()]


def _overlay(vocabulary: Vocabulary, added: Mapping[int, Mapping[str, Any]]) -> None:
    """Replace trained tokens by added ones: special tokens become control tokens, the others user-defined ones."""
    for index in sorted(added):
        entry = added[index]
        while len(vocabulary.tokens) <= index:
            vocabulary.tokens.append(f"[UNUSED{len(vocabulary.tokens)}]")
            vocabulary.types.append(Type.UNUSED)
            if vocabulary.scores is not None:
                vocabulary.scores.append(-1e6)
        content = entry["content"]
        if vocabulary.types[index] == Type.UNKNOWN:
            continue
        if entry.get("special"):
            vocabulary.types[index] = Type.CONTROL
        else:
            vocabulary.types[index] = Type.USER_DEFINED
            if vocabulary.model != "gpt2":
                content = content.replace("▁", " ")  # it is matched before spaces become ▁
        vocabulary.tokens[index] = content


def _split_of(path: Path, fast: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for the split pattern of a byte-level tokenizer."""
    steps = _steps(fast.get("pre_tokenizer"))
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    pattern = patterns[0] if patterns else None
    name = SPLITS.get((pattern, bool(fast["model"].get("ignore_merges"))))
    if name is None or fast.get("normalizer") is not None or not any(step["type"] == "ByteLevel" for step in steps):
        raise ConfigError(
            f"{path} splits texts by a pattern that llama.cpp does not support (supported: LLaMA 3, Qwen 2, GPT-2)"
        )
    return name


def _steps(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer, pre-tokenizer or post-processor, with sequences flattened."""
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers") or part.get("processors")
    return [part] if inner is None else [step for other in inner for step in _steps(other)]


def _specials_around(fast: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether a special token is added before, and after, each text."""
    for step in _steps(fast.get("post_processor")):
        if step["type"] == "TemplateProcessing":
            return "SpecialToken" in step["single"][0], "SpecialToken" in step["single"][-1]
    return False, False


def _has_space_prefix(fast: Mapping[str, Any]) -> bool:
    """Return True if a space is added before each text."""
    steps = _steps(fast.get("normalizer")) + _steps(fast.get("pre_tokenizer"))
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
