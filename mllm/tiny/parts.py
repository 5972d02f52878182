"""Shared parts of the tiny checkpoints: dimensions, tokenizers and random parameters.

Widths are multiples of 64, since bitsandbytes quantizes in blocks of 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AddedToken, Gemma3ImageProcessor, Gemma3Processor, GemmaTokenizer, PreTrainedModel

from mllm.tiny.vocabulary import train_pieces

TEXT = dict(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=8192,
)
"""Dimensions of the language models: 4 heads of 32."""
VISION = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=896, patch_size=14
)
"""Dimensions of the SigLIP and CLIP towers."""

GEMMA_TEXT = dict(
    **TEXT,
    head_dim=32,
    query_pre_attn_scalar=32,
    sliding_window=64,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
)
"""Dimensions of the language models of Gemma 2 and Gemma 3."""

GEMMA_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
GEMMA_IMAGE_TOKENS = dict(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")


def new(kind: Any, **values: Any) -> Any:
    """Return `kind(**values)`, because the type hints of transformers do not list all arguments of its classes."""
    return kind(**values)


def padded_rows(vocabulary: int) -> int:
    """Return the number of rows of an embedding: more than tokens, as in Gemma 3 (262,208 rows for 262,145 tokens)."""
    return (vocabulary // 64 + 1) * 64


def add_special_tokens(tokenizer: Any, names: Sequence[str]) -> None:
    """Declare `names` as special tokens, so that merges do not split them; absent ones get the next ids."""
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def random_model(kind: type[PreTrainedModel], config: Any, seed: int) -> PreTrainedModel:
    """Return a model with random parameters, drawn with `seed`, whose layers keep the variance.

    Parameters that the initialization of the model leaves at zero or nearly equal (`mm_input_projection_weight` of
    Gemma 3, norms, biases) are random, too, because tests could not detect errors in them otherwise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if parameter.ndim <= 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
                else:
                    transposed = name.endswith("mm_input_projection_weight")  # [in, out], unlike nn.Linear
                    inputs = parameter.shape[0] if transposed else parameter[0].numel()
                    parameter.copy_(torch.randn(parameter.shape) / inputs**0.5)
    return model.eval()


def gemma_tokenizer(
    names: Sequence[str] = GEMMA_TOKENS, media: dict[str, str] | None = None, last: Sequence[str] = ()
) -> Any:
    """Return Gemma's tokenizer without a chat template.

    Args:
        names: Special tokens, whose ids come first.
        media: Attribute -> token of images and sound; the tokens are in `names` or `last`.
        last: Special tokens whose ids follow the words.
    """
    vocabulary, merges = train_pieces(list(names))
    options = {} if media is None else {"extra_special_tokens": media}
    tokenizer = new(GemmaTokenizer, vocab=vocabulary, merges=merges, add_bos_token=True, **options)
    add_special_tokens(tokenizer, [*names, *last])
    return tokenizer


def gemma3_processor(side: int, tokens: int, chat_template: str | None = None) -> Gemma3Processor:
    """Return Gemma 3's processor for images of `side` pixels with `tokens` tokens each."""
    images = Gemma3ImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    tokenizer = gemma_tokenizer([*GEMMA_TOKENS, *GEMMA_IMAGE_TOKENS.values()], GEMMA_IMAGE_TOKENS)
    return Gemma3Processor(images, tokenizer, chat_template=chat_template, image_seq_length=tokens)
