"""Shared parts of the checkpoints of families: dimensions, a byte tokenizer with all special tokens, and templates."""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import GemmaTokenizer, LlamaTokenizer, Qwen2Tokenizer

from mllm.tiny.parts import add_special_tokens, new, padded_rows
from mllm.tiny.vocabulary import train_bytes, train_pieces

SIZES: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=2048,
)
"""Dimensions of the language models: 2 heads of 32."""
TOWER: dict[str, Any] = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
"""Dimensions of the vision towers."""
TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|video_pad|>", "<|image_pad|>"),
    *("<|vision_start|>", "<|vision_end|>", "<image>", "<video>", "<fake_token_around_image>", "<global-img>"),
    *("<end_of_utterance>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<img>", "</img>", "<IMG_CONTEXT>", "<|image|>"),
    *("<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
    *("<|python_tag|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL"),
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
    *(f"TILE_{number}" for number in range(1, 5)),
    *("<slice>", "</slice>", "<image_id>", "</image_id>", "<IMG_START>", "<IMG_END>", "<IMG_ATOM>", "<IMG_GRID>"),
    *("<IMG_COL>", "<IMG_ROW>", "<|patch|>", "<eof>", "<wrap>", "<im_patch>", "<im_col>", "<im_start>", "<im_end>"),
    *("<low_res_im_start>", "<frame_start>", "<frame_end>", "<im_low>", "|SPEAKER|", "|NEWLINE|", "<imgpad>"),
]
"""Special tokens of all families with a byte tokenizer."""
PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"]


def chat(image: str = "<image>", end: str = "<|im_end|>") -> str:
    """Return a ChatML template that writes `image` for an image."""
    return (
        "{% for turn in messages %}{{ '<|im_start|>' ~ turn['role'] ~ '\n' }}"
        "{% if turn['content'] is string %}{{ turn['content'] }}{% else %}{% for part in turn['content'] %}"
        f"{{{{ '{image}' if part['type'] == 'image' else part['text'] }}}}"
        f"{{% endfor %}}{{% endif %}}{{{{ '{end}\n' }}}}{{% endfor %}}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
    )


@cache
def _bytes() -> tuple[dict[str, int], list[tuple[str, str]]]:
    return train_bytes(TOKENS)


@cache
def _pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    return train_pieces(PIECES)


def byte_tokenizer(eos: str = "<|im_end|>", kind: Any = Qwen2Tokenizer, **media: str) -> Any:
    """Return a tokenizer of bytes; `media` are further named tokens, such as `image_token`."""
    vocabulary, merges = _bytes()
    more = {"extra_special_tokens": media} if media else {}
    tokenizer = new(kind, vocab=vocabulary, merges=merges, eos_token=eos, pad_token="<|endoftext|>", **more)
    add_special_tokens(tokenizer, TOKENS)
    return tokenizer


def piece_tokenizer(kind: Any = GemmaTokenizer, template: str | None = None) -> Any:
    """Return a tokenizer of pieces in the manner of SentencePiece, of class GemmaTokenizer or LlamaTokenizer."""
    vocabulary, merges = _pieces()
    names = dict(bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>")
    tokenizer = new(kind, vocab=vocabulary, merges=merges, add_bos_token=True, **names)
    add_special_tokens(tokenizer, PIECES)
    tokenizer.chat_template = template
    return tokenizer


def ids_of(tokenizer: Any) -> dict[str, Any]:
    """Return the ids of special tokens and the size of the vocabulary under their names in a config."""
    eos = tokenizer.eos_token_id
    bos = tokenizer.bos_token_id
    return {
        "vocab_size": padded_rows(len(tokenizer)),
        "bos_token_id": eos if bos is None else bos,
        "eos_token_id": eos,
        "pad_token_id": tokenizer.pad_token_id,
    }


__all__ = ["SIZES", "TOWER", "LlamaTokenizer", "byte_tokenizer", "chat", "ids_of", "piece_tokenizer"]
