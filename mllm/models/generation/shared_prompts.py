"""Prompts of one row whose common first tokens are computed once, and from whose keys and values answers continue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from mllm.models.encoding.chat import ChatEncoder
from mllm.models.encoding.processor_outputs import cut, text_of
from mllm.models.language_model import LanguageModel
from mllm.protocols import Bundle
from mllm.shared_rows import leaders_of
from mllm.structures import Encoded


def shares_tokens(bundle: Bundle) -> bool:
    """Return True if prompts about equal images share their first tokens."""
    model, encoder = bundle.model, bundle.encoder
    if not isinstance(model, LanguageModel) or not isinstance(encoder, ChatEncoder):
        return False
    return model.shares_tokens and encoder.shares_images and not model.heads


class SharedPrompts:
    """Keys and values of all tokens but the last of some prompts.

    The prompts are one row without padding, in which those about equal images share their first tokens. The last token
    of a prompt is left to the generation, which computes the logits for it.

    Args:
        bundle: Model and encoder.
        prompts: The prompts.
    """

    def __init__(self, bundle: Bundle, prompts: Sequence[Encoded]) -> None:
        model, encoder = bundle.model, bundle.encoder
        assert isinstance(model, LanguageModel) and isinstance(encoder, ChatEncoder)
        self.model, self.encoder, self.prompts = model, encoder, prompts
        leaders, shared = leaders_of(prompts)
        batch = encoder.pad_shared([_without_last_token(prompt) for prompt in prompts], leaders, shared)
        self.row, self.layers = model.keys_and_values(batch.to(model.pretrained.device).student)

    def source(self, index: int) -> Tensor:
        """Return the places in the row [L] of the tokens of a prompt, without the last one."""
        return self.row.source_BL[index, : len(self.prompts[index]) - 1]


def shared_inputs(parts: Sequence[tuple[SharedPrompts, int]]) -> dict[str, Any]:
    """Return the arguments of `generate` of transformers for prompts of one or several rows, padded on the left.

    Args:
        parts: Row of each prompt, and the index of the prompt in it.
    """
    first, _ = parts[0]
    pretrained = first.model.pretrained
    prompts = [shared.prompts[index] for shared, index in parts]
    texts = [replace(prompt, student=text_of(prompt.student), frames=()) for prompt in prompts]
    student = first.encoder.pad(texts, side="left").to(pretrained.device).student
    columns = student["input_ids"].shape[1] - 1
    sources = [
        F.pad(source, (columns - len(source), 0)) for source in (shared.source(index) for shared, index in parts)
    ]

    def padded(layer: int, kind: int) -> Tensor:
        """Return the keys (0) or values (1) of a layer [B, H, L, D]."""
        rows = [shared.layers[layer][kind][0] for shared, _ in parts]
        return torch.stack([row_HTD[:, source_L] for row_HTD, source_L in zip(rows, sources, strict=True)])

    cache = DynamicCache(config=pretrained.config)
    for layer in range(len(first.layers)):
        cache.update(padded(layer, 0), padded(layer, 1), layer)
    inputs = {name: student[name] for name in ("input_ids", "attention_mask")}
    return {**inputs, "past_key_values": cache}


def _without_last_token(prompt: Encoded) -> Encoded:
    """Return a prompt without its last token."""
    length = len(prompt) - 1
    labels = {"labels": prompt.targets["labels"][:length]}
    return replace(prompt, student=cut(prompt.student, length), targets=labels, length=None)
