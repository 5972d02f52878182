"""Tokenization of the consecutive segments of a text, so that no token crosses from one segment to the next."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from mllm.errors import ConfigError, DataError
from mllm.models.encoding.processor_outputs import selected
from mllm.models.encoding.text_processor import TextProcessor

ANCHORS = ("\n", ".", ":", "|")
"""Texts that are written before a segment to keep the tokenizer from adding a space, until one does not join it."""


class SegmentTokenizer:
    """Tokenization of prompts and answers, one segment after another.

    The tokens of a segment do not depend on later segments. So the tokens of a prompt are the first tokens of the
    prompt with its answer. Plain tokenization of the joined text does not guarantee that: a tokenizer may join the last
    character of a prompt with the first one of an answer.

    A special token ends every segment in the text, and is removed from the token ids. Some tokenizers add a space
    after a special token (LLaMA); there an anchor precedes the next segment and is removed as well.

    Args:
        processor: Processor or tokenizer of a checkpoint.
        reserved: Special tokens that must not end a segment: they represent images or objects.
    """

    def __init__(self, processor: ProcessorMixin | TextProcessor, reserved: Collection[str] = ()) -> None:
        self.processor: Any = processor
        self.tokenizer: Any = processor.tokenizer
        self._read_text = processor if _reads_text(processor) else processor.tokenizer
        specials = [token for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        self._specials = tuple(token.content for token in specials)
        self.separator = self._choose_separator(specials, {self.tokenizer.bos_token, *reserved})
        self._separator_id = self._ids(self.separator)[0]
        plain, complete = self._ids("a"), list(self.tokenizer("a")["input_ids"])
        lead = next(i for i in range(len(complete)) if complete[i : i + len(plain)] == plain)
        self._leading = complete[:lead].count(self._separator_id)
        """Number of separators that the tokenizer itself writes before a text."""
        self._anchors = self._find_anchors()

    def __call__(self, segments: Sequence[str], images: Sequence[Any] = ()) -> tuple[dict[str, Tensor], list[int]]:
        """Return the outputs of the processor without a batch dimension, and the end of each segment in tokens.

        Raise `DataError` if the tokenizer joins two segments in spite of the separators.
        """
        for anchor in self._anchors:
            text, separators, anchored = self._joined(segments, anchor)
            bos = self.tokenizer.bos_token
            special = not (bos and text.startswith(bos))
            options: dict[str, Any] = dict(text=[text], return_tensors="pt", add_special_tokens=special)
            # Some processors (PaliGemma) refuse a text without an image; its tokens are those of the tokenizer.
            tensors = self.processor(images=list(images), **options) if images else self._read_text(**options)
            ids = tensors["input_ids"][0]
            selection = self._select(ids, [number + special * self._leading for number in separators], anchored, anchor)
            if selection is not None:
                mask, ends = selection
                return selected(tensors, mask, type(self.processor).__name__), ends
        raise DataError(f"the tokenizer joins {segments[0][-20:]!r} with the text after it")

    def _joined(self, segments: Sequence[str], anchor: str) -> tuple[str, list[int], list[bool]]:
        """Return the text with separators and anchors.

        Return also the number of the separator after each segment, and True for each segment after an anchor.
        """
        text, numbers, anchored = "", [], []
        for i, segment in enumerate(segments):
            anchored.append(bool(anchor) and i > 0 and not segments[i - 1].endswith(self._specials))
            text += (anchor if anchored[-1] else "") + segment
            numbers.append(text.count(self.separator))
            text += self.separator
        return text, numbers, anchored

    def _select(
        self, ids: Tensor, numbers: Sequence[int], anchored: Sequence[bool], anchor: str
    ) -> tuple[Tensor, list[int]] | None:
        """Return a mask of the tokens of the segments and the end of each segment. None: an anchor was joined."""
        separators = (ids == self._separator_id).nonzero().squeeze(1)
        if len(separators) <= numbers[-1]:
            raise ConfigError(f"the tokenizer does not read its special token {self.separator!r} as one token")
        positions = separators[torch.tensor(numbers)].tolist()
        mask = torch.zeros_like(ids, dtype=torch.bool)
        ends, start = [], 0
        anchor_ids = self._after_separator(anchor)
        for position, has_anchor in zip(positions, anchored, strict=True):
            if has_anchor:
                if ids[start : start + len(anchor_ids)].tolist() != anchor_ids:
                    return None
                start += len(anchor_ids)
            mask[start:position] = True
            ends.append(int(mask.sum()))
            start = position + 1
        return mask, ends

    def _find_anchors(self) -> tuple[str, ...]:
        """Return the anchors to try in order; one empty anchor if the tokenizer adds nothing after a special token."""
        usable = []
        for anchor in ANCHORS:
            anchor_ids, ids = self._after_separator(anchor), self._after_separator(f"{anchor}x")
            if anchor_ids and ids[: len(anchor_ids)] == anchor_ids:
                usable.append((anchor, ids[len(anchor_ids) :]))
        if not usable or usable[0][1] == self._after_separator("x"):
            return ("",)
        return tuple(anchor for anchor, _ in usable)

    def _after_separator(self, text: str) -> list[int]:
        """Return the token ids of a text that follows a separator."""
        return self._ids(self.separator + text)[1:]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _choose_separator(self, specials: Sequence[Any], excluded: Collection[str | None]) -> str:
        """Return a special token that keeps the spaces around it, the end-of-sequence token if possible."""
        names = [token.content for token in specials if not (token.lstrip or token.rstrip or token.single_word)]
        names = [name for name in names if name not in excluded] or [name for name in names if name]
        if not names:
            raise ConfigError(
                "the tokenizer has no special token that keeps the spaces around it, without which prompts cannot be "
                "separated from answers; add an eos_token to it"
            )
        eos = self.tokenizer.eos_token
        return str(eos if eos in names else names[0])


def _reads_text(processor: ProcessorMixin | TextProcessor) -> bool:
    """Return whether a processor reads a text without an image."""
    try:
        processor(text=["a"])
    except ValueError:
        return False
    return True
