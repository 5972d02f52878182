"""Prompts of one row whose common first tokens are computed once, and from whose keys and values answers continue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from mllm.models.encoding.chat import ChatEncoder
from mllm.models.encoding.processor_outputs import cut, text_of
from mllm.models.encoding.shared_rows import leaders_of
from mllm.models.language_model import LanguageModel
from mllm.protocols import Bundle
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

    def inputs(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of `generate` of transformers for some of the prompts, padded on the left."""
        pretrained = self.model.pretrained
        texts = [replace(self.prompts[i], student=text_of(self.prompts[i].student), frames=()) for i in indices]
        student = self.encoder.pad(texts, side="left").to(pretrained.device).student
        mask_BL = student["attention_mask"]
        columns = mask_BL.shape[1] - 1
        source_BL = mask_BL.new_zeros(len(indices), columns)
        for row, index in enumerate(indices):
            length = len(self.prompts[index]) - 1
            source_BL[row, columns - length :] = self.row.source_BL[index, :length]

        def padded(tensor_1HTD: Tensor) -> Tensor:
            return tensor_1HTD[0][:, source_BL].transpose(0, 1)

        cache = DynamicCache(config=pretrained.config)
        for number, (keys, values) in enumerate(self.layers):
            cache.update(padded(keys), padded(values), number)
        return {"input_ids": student["input_ids"], "attention_mask": mask_BL, "past_key_values": cache}


def _without_last_token(prompt: Encoded) -> Encoded:
    """Return a prompt without its last token."""
    length = len(prompt) - 1
    labels = {"labels": prompt.targets["labels"][:length]}
    return replace(prompt, student=cut(prompt.student, length), targets=labels, length=None)
