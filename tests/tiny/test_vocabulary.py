"""Small vocabularies: whole words, single digits, every byte, the same each time."""

from __future__ import annotations

from mllm.tiny.vocabulary import BYTES, train_bytes, train_pieces


def test_pieces_begin_with_special_tokens_and_bytes() -> None:
    vocabulary, merges = train_pieces(["<pad>", "<eos>"])
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    assert names[:258] == ["<pad>", "<eos>", *BYTES]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(vocabulary) <= 1500
    assert {"▁image", "▁lesion", "▁ultrasound", "\n\n"} <= set(vocabulary)
    assert all(left in vocabulary and right in vocabulary and left + right in vocabulary for left, right in merges)


def test_numbers_are_read_digit_by_digit() -> None:
    vocabulary, _ = train_pieces([])
    assert [piece for piece in vocabulary if piece[-1].isdigit() and piece not in BYTES] == list("0123456789")


def test_training_a_vocabulary_is_deterministic() -> None:
    assert train_pieces(["<s>"]) == train_pieces(["<s>"])
    assert train_bytes(["<s>"]) == train_bytes(["<s>"])


def test_byte_level_pieces_cover_every_byte() -> None:
    vocabulary, _ = train_bytes(["<|end|>"])
    assert vocabulary["<|end|>"] == 0
    assert sum(len(piece) == 1 for piece in vocabulary) == 256
