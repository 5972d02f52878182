"""Tiny SmolVLM."""

from __future__ import annotations

from typing import Any

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedModel,
    Qwen2Tokenizer,
)

from mllm.tiny.parts import TEXT, VISION, add_special_tokens, new, padded_rows, random_model
from mllm.tiny.vocabulary import train_bytes

SIDE, PATCH, SCALE = 112, 14, 4
"""Side of a tile and of a patch in pixels; SCALE x SCALE patches make a token."""
TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
SMOLVLM_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>"),
    *TILES,
]
TEMPLATE = (
    "<|im_start|>{% for turn in messages %}{{ turn['role'] | capitalize }}"
    "{{ ':' if turn['content'] is not string and turn['content'][0]['type'] == 'image' else ': ' }}"
    "{% if turn['content'] is string %}{{ turn['content'] }}{% else %}{% for part in turn['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}<end_of_utterance>\n"
    "{% endfor %}{{ 'Assistant:' if add_generation_prompt }}"
)
"""SmolVLM: one start token, and an end token after each turn."""


def smolvlm(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return SmolVLM (Idefics 3): an image is cut into up to 2 x 2 tiles of 112 pixels, and an overview."""
    vocabulary, merges = train_bytes(SMOLVLM_TOKENS)
    tokenizer = new(
        Qwen2Tokenizer, vocab=vocabulary, merges=merges, eos_token="<end_of_utterance>", pad_token="<|endoftext|>"
    )
    add_special_tokens(tokenizer, SMOLVLM_TOKENS)
    tower = {**VISION, "image_size": SIDE, "patch_size": PATCH, **vision}
    side, scale = tower["image_size"], tower.pop("scale", SCALE)
    config = new(
        Idefics3Config,
        text_config={
            "model_type": "llama",
            **TEXT,
            "vocab_size": padded_rows(len(tokenizer)),
            "bos_token_id": tokenizer.convert_tokens_to_ids("<|im_start|>"),
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **text,
        },
        vision_config=tower,
        scale_factor=scale,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    images = Idefics3ImageProcessor(
        size={"longest_edge": tower.get("longest_edge", 2 * side)}, max_image_size={"longest_edge": side}
    )
    tokens = (side // tower["patch_size"]) ** 2 // scale**2
    processor = Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=TEMPLATE)
    return random_model(Idefics3ForConditionalGeneration, config, seed), processor
