"""Tokenizer of a converted T5Gemma: Gemma's SentencePiece model and its form in transformers, with the same ids."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import AutoTokenizer, GemmaTokenizer

from mllm.errors import ConfigError, one_line
from mllm.models.backbone.load_errors import explained, refuse_empty_tokenizer

PIECES = "tokenizer.model"
END_OF_TURN = "<end_of_turn>"
FIXED_IDS = {"<pad>": 0, "<eos>": 1, "<bos>": 2}
"""Ids that are constants in the Flax model and its sampler."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' "
    "+ message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
"""Chat template of Gemma 2, which the published instruction-tuned sizes have."""


@dataclass(frozen=True)
class Tokenizers:
    """The two forms of a tokenizer."""

    converted: Any
    """The tokenizer of transformers."""
    pieces: Path | None
    """Gemma's SentencePiece model, if there is one."""

    @property
    def end_ids(self) -> list[int]:
        """Return the token ids that end an answer: those at which the sampler of the Flax model stops."""
        turn_end = self.converted.get_vocab().get(END_OF_TURN)
        return [FIXED_IDS["<eos>"], *([] if turn_end is None else [turn_end])]

    def write(self, folder: Path) -> None:
        """Write both forms to `folder`."""
        self.converted.save_pretrained(folder)
        self.write_pieces(folder)

    def write_pieces(self, folder: Path) -> None:
        """Write the SentencePiece model to `folder`, if there is one."""
        if self.pieces is not None:
            shutil.copyfile(self.pieces, folder / PIECES)


def tokenizers_of_flax(source: Path, tokenizer: str | None, *, instruction_tuned: bool) -> Tokenizers:
    """Return the tokenizer for a checkpoint of Flax in `source`.

    Args:
        source: Folder of the checkpoint.
        tokenizer: Gemma's `tokenizer.model`, or a folder or name on the Hub with the tokenizer of T5Gemma (None: the
            file in `source`).
        instruction_tuned: True to write Gemma's chat template, if the tokenizer has none.

    Raises:
        ConfigError: There is no tokenizer, it cannot be read, or it has other ids than Gemma's.
    """
    name = tokenizer or str(source / PIECES)
    if tokenizer is None and not (source / PIECES).is_file():
        raise ConfigError(
            f"--model {source} has no {PIECES}, as published checkpoints of Flax: pass --tokenizer with the "
            f"{PIECES} of Gemma 2, or with a folder or name of T5Gemma for transformers, such as "
            "google/t5gemma-b-b-prefixlm-it"
        )
    if Path(name).suffix == ".model":
        pieces = Path(name)
        with explained(name):
            _read_pieces(pieces)
            converted: Any = GemmaTokenizer.from_pretrained(pieces.parent, vocab_file=str(pieces))
    else:
        pieces = Path(name) / PIECES
        converted = _load(name)
    tokenizers = Tokenizers(converted, pieces if pieces.is_file() else None)
    _refuse_other_ids(name, tokenizers)
    if instruction_tuned and converted.chat_template is None:
        converted.chat_template = CHAT_TEMPLATE
    return tokenizers


def tokenizers_of_transformers(source: Path, tokenizer: str | None) -> Tokenizers:
    """Return the tokenizer for a checkpoint of transformers in `source`; the Flax model needs the SentencePiece model.

    Args:
        source: Folder of the checkpoint.
        tokenizer: Gemma's `tokenizer.model`, or a folder that contains it (None: `source`).

    Raises:
        ConfigError: There is no SentencePiece model, or its ids are not those of the tokenizer in `source`.
    """
    pieces = Path(tokenizer) if tokenizer else source
    pieces = pieces / PIECES if pieces.is_dir() else pieces
    if not pieces.is_file():
        raise ConfigError(
            f"{pieces} does not exist, and Flax reads no tokenizer.json: pass --tokenizer with the {PIECES} of the "
            "model that was trained, or of Gemma 2"
        )
    tokenizers = Tokenizers(_load(str(source)), pieces)
    _refuse_other_ids(str(source), tokenizers)
    return tokenizers


def _load(name: str) -> Any:
    """Return the tokenizer of transformers in a folder or on the Hub."""
    with explained(name):
        tokenizer = AutoTokenizer.from_pretrained(name)
    refuse_empty_tokenizer(name, tokenizer)
    return tokenizer


def _read_pieces(path: Path) -> list[str]:
    """Return the tokens of a SentencePiece model in the order of their ids."""
    if not path.is_file():
        raise ConfigError(f"--tokenizer {path} does not exist")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"{path} is not a SentencePiece model ({one_line(str(error))}): download it again") from error
    return [model.id_to_piece(index) for index in range(model.get_piece_size())]


def _refuse_other_ids(name: str, tokenizers: Tokenizers) -> None:
    """Raise `ConfigError` if both forms of a tokenizer have different ids, or others than the Flax model expects."""
    vocabulary: dict[str, int] = tokenizers.converted.get_vocab()
    pieces = [] if tokenizers.pieces is None else _read_pieces(tokenizers.pieces)
    expected = FIXED_IDS | {piece: index for index, piece in enumerate(pieces)}
    other = next((token for token, index in expected.items() if vocabulary.get(token) != index), None)
    if other is not None:
        raise ConfigError(
            f"the tokenizer of '{name}' has another id for {other!r} ({vocabulary.get(other)}) than Gemma's "
            f"({expected[other]}): use the tokenizer with which the checkpoint was trained"
        )
    if pieces and (added := sorted(vocabulary.keys() - expected.keys(), key=vocabulary.__getitem__)):
        raise ConfigError(
            f"the tokenizer of '{name}' has {len(added)} tokens that {tokenizers.pieces} does not have (first "
            f"{added[0]!r}): a checkpoint with added tokens cannot be converted"
        )
