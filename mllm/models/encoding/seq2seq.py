"""Samples of text for encoder-decoder models: the question goes to the encoder, the answer to the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mllm.errors import DataError
from mllm.models.encoding.padding import stacked
from mllm.models.encoding.text_processor import TextProcessor
from mllm.structures import IGNORE, Answer, Batch, Encoded, Sample, Turn

_OPEN, _CLOSE = "\ue000", "\ue001"
"""Private-use characters that bracket the last question while the template is rendered; none is tokenized."""


class Seq2SeqEncoder:
    """Encodes conversations for T5Gemma, T5 and their kind; what is learned is the last answer with its end.

    With a chat template the source is what the template renders up to the answer, without its `<bos>`
    (`<start_of_turn>user\\n...<end_of_turn>\\n<start_of_turn>model\\n`), and the target ends with the template's end of
    turn. Without one the source is the bare text with the tokenizer's own end, and so is the target. The decoder starts
    at `decoder_start_id`. `max_length` bounds source and target each, in tokens.
    """

    def __init__(
        self,
        processor: TextProcessor,
        *,
        max_length: int,
        decoder_start_id: int,
        turn_end: str | None = None,
        system: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        if chat_template is not None:
            processor.chat_template = chat_template
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.max_length, self.system = max_length, system
        self.decoder_start_id = decoder_start_id
        self._control = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        self.turn_end = turn_end or self._find_turn_end()

    @property
    def turn_end_id(self) -> int:
        """The token id that ends a target, where generation stops."""
        ids: Any = self.tokenizer.convert_tokens_to_ids(self.turn_end)
        return int(ids)

    def encode(self, sample: Sample) -> Encoded:
        """Source and target; raises `DataError` where the conversation does not end with an answer."""
        where = sample.source or "a sample"
        if not sample.turns or sample.turns[-1].role != "assistant":
            raise DataError(f"{where}: the conversation does not end with an answer to learn from")
        source, cut = self._source(sample, list(sample.turns[:-1]))
        answer = self._checked(sample.turns[-1].text.strip(), where)
        target = self.tokenizer(answer, add_special_tokens=False)["input_ids"] + [self.turn_end_id]
        kept = target[: self.max_length]
        decoder = torch.tensor([self.decoder_start_id, *kept])
        labels = decoder.clone()
        labels[0] = IGNORE
        student = {"input_ids": source, "attention_mask": torch.ones_like(source), "decoder_input_ids": decoder}
        return Encoded(student, {"labels": labels}, sample.source, truncated=cut or len(kept) < len(target))

    def prompt(self, sample: Sample) -> Encoded:
        """The source alone; a last assistant turn is left out."""
        turns = sample.turns[:-1] if sample.turns and sample.turns[-1].role == "assistant" else sample.turns
        source, cut = self._source(sample, list(turns))
        student = {"input_ids": source, "attention_mask": torch.ones_like(source)}
        return Encoded(student, {"labels": torch.full_like(source, IGNORE)}, sample.source, truncated=cut)

    def pad(self, samples: Sequence[Encoded], side: str = "right") -> Batch:
        """One batch; sources and targets are padded to their own longest, the source on `side`.

        What follows a target's end is never looked at by it, so the decoder needs no mask.
        """
        pad = self.tokenizer.pad_token_id
        fill = self.tokenizer.eos_token_id if pad is None else pad
        student = {
            "input_ids": _rows([sample.student["input_ids"] for sample in samples], fill, side),
            "attention_mask": _rows([sample.student["attention_mask"] for sample in samples], 0, side),
        }
        if all("decoder_input_ids" in sample.student for sample in samples):
            student["decoder_input_ids"] = _rows(
                [sample.student["decoder_input_ids"] for sample in samples], fill, "right"
            )
        return Batch(student, {"labels": _rows([sample.targets["labels"] for sample in samples], IGNORE, "right")})

    def read_answer(self, tokens: Tensor, frames: Any = (), marks: Any = None) -> Answer:
        """What generated tokens [L] say."""
        return Answer(str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip())

    def reference(self, sample: Sample) -> Answer:
        """The true answer."""
        answered = bool(sample.turns) and sample.turns[-1].role == "assistant"
        return Answer(sample.turns[-1].text if answered else "")

    def _source(self, sample: Sample, turns: list[Turn]) -> tuple[Tensor, bool]:
        """The encoder's token ids [L], and whether the end of the last question was cut at `max_length`."""
        where = sample.source or "a sample"
        if sample.images:
            raise DataError(f"{where}: the sample has images, and this model reads text alone")
        if not turns or turns[-1].role != "user":
            raise DataError(f"{where}: a question must stand before the answer")
        if self.system and turns[0].role != "system":
            turns.insert(0, Turn("system", self.system))
        texts = [self._checked(turn.text.strip(), where) for turn in turns]
        before, question, after = self._rendered(turns, texts)
        special = self.processor.chat_template is None
        encoded = self.tokenizer(before + question + after, add_special_tokens=special, return_offsets_mapping=True)
        excess = len(encoded["input_ids"]) - self.max_length
        if excess > 0:
            spans = [(start, end) for start, end in encoded["offset_mapping"] if len(before) <= start < end]
            own = [start for start, end in spans if end <= len(before) + len(question)]
            if len(own) <= excess:
                raise DataError(
                    f"{where}: {len(encoded['input_ids'])} tokens of the source do not fit max_length="
                    f"{self.max_length}, even without its last question; raise max_length"
                )
            question = question[: own[-excess] - len(before)]
            encoded = self.tokenizer(before + question + after, add_special_tokens=special)
        return torch.tensor(encoded["input_ids"][: self.max_length]), excess > 0

    def _rendered(self, turns: list[Turn], texts: list[str]) -> tuple[str, str, str]:
        """The source's text: what stands before the last question, the question, and what follows it."""
        if self.processor.chat_template is None:
            return "".join(f"{text}\n" for text in texts[:-1]), texts[-1], ""
        messages = [{"role": turn.role, "content": text} for turn, text in zip(turns, texts, strict=True)]
        messages[-1]["content"] = f"{_OPEN}{texts[-1]}{_CLOSE}"
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        bos = self.tokenizer.bos_token
        before, _, rest = (text.removeprefix(bos) if bos else text).partition(_OPEN)
        question, _, after = rest.partition(_CLOSE)
        return before, question, after

    def _checked(self, text: str, where: str) -> str:
        """The text, unless it holds a control token, which would end a turn inside it."""
        for token in (_OPEN, _CLOSE, *self._control):
            if token in text:
                raise DataError(f"{where}: the text holds the control token {token!r}; remove it")
        return text

    def _find_turn_end(self) -> str:
        """What ends an assistant's turn in the template; without a template the tokenizer's own end."""
        end = str(self.tokenizer.eos_token)
        if self.processor.chat_template is None:
            return end
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"b{_CLOSE}"}]
        tail = self.processor.apply_chat_template(probe, tokenize=False).partition(_CLOSE)[2]
        found = [(tail.find(token), token) for token in self._control if token in tail]
        return min(found)[1] if found else end


def _rows(tensors: list[Tensor], fill: int, side: str) -> Tensor:
    """Tensors [L] padded to the longest on a side."""
    return stacked(tensors, max(map(len, tensors)), fill, side)
