"""A small T5Gemma of transformers with Gemma's special tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from gemma_pieces import write_pieces, write_tokenizer

from mllm.tiny.checkpoints import write_tiny

ROWS = 640
"""Rows of the embeddings, more than tokens."""
TEXT = dict(vocab_size=ROWS, sliding_window=4096, num_hidden_layers=2, layer_types=None, hidden_size=64)
"""Values of the small T5Gemma, with the window and the alternating layers of the Flax model."""


@pytest.fixture(scope="session")
def pieces(tmp_path_factory) -> Path:
    """Return the SentencePiece model."""
    return write_pieces(tmp_path_factory.mktemp("pieces") / "tokenizer.model")


@pytest.fixture(scope="session")
def source(tmp_path_factory, pieces) -> Path:
    """Return the folder of the checkpoint."""
    folder = write_tiny("t5gemma", tmp_path_factory.mktemp("t5gemma") / "model", text=TEXT)
    write_tokenizer(folder, pieces)
    return folder
