"""Small SentencePiece models with the special tokens and ids of Gemma 2, and their form in transformers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import sentencepiece

TEXTS = [
    "The heart pumps blood to the brain and to the lungs.",
    "Hello! My next holidays are in Paris.",
    "Bonjour ! Je vais faire des vacances en France, pour le coeur et le foie.",
]
CONTROL = ["<mask>", "<2mass>", "[@BOS@]", *(f"<unused{number}>" for number in range(99))]
"""Tokens 4 to 105 of Gemma 2. `<start_of_turn>` is 106."""


def write_pieces(path: Path, rows: int = 520) -> Path:
    """Train a SentencePiece model with at most `rows` tokens, write it to `path`, and return the path."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 5),
            model_writer=file,
            vocab_size=rows,
            model_type="bpe",
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            eos_piece="<eos>",
            bos_piece="<bos>",
            byte_fallback=True,
            user_defined_symbols=[*CONTROL, "<start_of_turn>", "<end_of_turn>", "\n"],
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            hard_vocab_limit=False,
            minloglevel=2,
        )
    return path


def write_tokenizer(folder: Path, pieces: Path) -> Any:
    """Write the tokenizer of a SentencePiece model to the folder of a checkpoint in both forms, and return it."""
    from transformers import GemmaTokenizer

    tokenizer = GemmaTokenizer.from_pretrained(pieces.parent, vocab_file=str(pieces))
    tokenizer.save_pretrained(folder)
    shutil.copyfile(pieces, folder / "tokenizer.model")
    return tokenizer
