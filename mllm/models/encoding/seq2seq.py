"""Encoder of encoder-decoder models: the question, with its images, is the source, and the answer is the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from mllm.errors import DataError, errors_of_row
from mllm.models.encoding.chat_template import CLOSE, OPEN
from mllm.models.encoding.marks import source_of
from mllm.models.encoding.padding import stacked
from mllm.models.encoding.processor_outputs import joined, selected
from mllm.models.encoding.text_encoder import TextEncoder, parts_of, without_answer
from mllm.models.encoding.text_processor import TextProcessor
from mllm.structures import IGNORE, IMAGE, Answer, Batch, Encoded, Frame, Mark, Sample, Turn
from mllm.supervision import unsupervised


class Seq2SeqEncoder(TextEncoder):
    """Encoder of conversations for T5Gemma, T5 and similar models. The last answer and its end are supervised.

    With a processor that reads images (T5Gemma 2), the source has images too.

    With a chat template the source is the rendered conversation up to the answer, without its `<bos>`
    (`<start_of_turn>user\\n...<end_of_turn>\\n<start_of_turn>model\\n`), and the target ends with the template's
    end of turn. Without a template, source and target are texts that end with the tokenizer's end token.
    The decoder starts at `decoder_start_id`, then `forced_start_id` if the checkpoint forces one. `max_length` limits
    source and target separately, in tokens; a long last question is cut at its end, behind its images.
    """

    def __init__(
        self,
        processor: ProcessorMixin | TextProcessor,
        *,
        max_length: int,
        decoder_start_id: int,
        forced_start_id: int | None = None,
        turn_end: str | None = None,
        system: str | None = None,
        chat_template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            processor, max_length=max_length, system=system, chat_template=chat_template, template_args=template_args
        )
        self.decoder_start_id, self.forced_start_id = decoder_start_id, forced_start_id
        self._image_token = None if isinstance(processor, TextProcessor) else str(self.processor.image_token)
        """Placeholder of an image in the text that the processor reads. None: the model reads text alone."""
        if self._image_token is not None:
            self._control_tokens = [token for token in self._control_tokens if token != IMAGE]
        self.turn_end = turn_end or self._find_turn_end()

    @property
    def turn_end_id(self) -> int:
        """Return the token id that ends a target. Generation stops at it."""
        return int(self.tokenizer.convert_tokens_to_ids(self.turn_end))

    def encode(self, sample: Sample) -> Encoded:
        """Encode source and target. Raise `DataError` if the conversation does not end with an answer."""
        if not sample.turns or sample.turns[-1].role != "assistant":
            raise DataError.at(source_of(sample), "the conversation does not end with an answer to learn from")
        encoded = self.prompt(sample)
        answer = sample.turns[-1].text.strip()
        if not answer:
            raise DataError.at(source_of(sample), "an answer is empty; remove the row or write the answer")
        self._refuse_control_tokens([answer], source_of(sample))
        with errors_of_row(source_of(sample)):
            target = self.tokenizer(answer, add_special_tokens=False)["input_ids"] + [self.turn_end_id]
        start = [token for token in (self.decoder_start_id, self.forced_start_id) if token is not None]
        decoder = torch.tensor([*start, *target[: self.max_length]])
        labels = decoder.clone()
        labels[: len(start)] = IGNORE
        return replace(
            encoded,
            student={**encoded.student, "decoder_input_ids": decoder},
            targets={"labels": labels},
            truncated=encoded.truncated or len(target) > self.max_length,
        )

    def prompt(self, sample: Sample) -> Encoded:
        """Encode the source alone. A last assistant turn is left out."""
        with errors_of_row(source_of(sample)):
            student, truncated = self._source(sample)
        targets = unsupervised({"labels": student["input_ids"]})
        frames = tuple(Frame(*image.size) for image in sample.images)
        return Encoded(student, targets, sample.source, truncated=truncated, frames=frames)

    def pad(self, samples: Sequence[Encoded], side: str = "right") -> Batch:
        """Return a batch. Sources and targets are padded on the right, each to its longest sequence, for any `side`.

        An encoder may count positions from the first token, so padding on the left would move them. The decoder is
        causal, so no token of a target attends to the padding after it, and it needs no mask.
        """
        target = "decoder_input_ids"
        sources = [{name: one.student[name] for name in one.student if name != target} for one in samples]
        student = joined(sources, self._pad_id, "right")
        if all(target in sample.student for sample in samples):
            student[target] = _stack([sample.student[target] for sample in samples], self._pad_id)
        images = tuple(index for index, sample in enumerate(samples) for _ in sample.frames)
        labels = _stack([sample.targets["labels"] for sample in samples], IGNORE)
        return Batch(student, {"labels": labels}, images=images)

    def text_in(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def read_text(self, text: str, frames: Sequence[Frame] = (), marks: Sequence[Mark] | None = None) -> Answer:
        """Return the answer of a text."""
        return Answer(text)

    def reference(self, sample: Sample) -> Answer:
        """Return the reference answer: the text of the last assistant turn."""
        has_answer = bool(sample.turns) and sample.turns[-1].role == "assistant"
        return Answer(sample.turns[-1].text if has_answer else "")

    def _source(self, sample: Sample) -> tuple[dict[str, Tensor], bool]:
        """Return the outputs of the processor for the source, and True if the last question was cut at `max_length`."""
        source, turns = source_of(sample), without_answer(sample.turns)
        if sample.images and self._image_token is None:
            raise DataError.at(source, "the sample has images, but this model reads only text")
        if not turns or turns[-1].role != "user":
            raise DataError.at(source, "there is no question before the answer")
        reads_text = self._image_token is None  # a placeholder is text, too
        placed = self._with_system_turn(turns) if reads_text else self._with_placed_images(sample, turns)
        turns = [Turn(turn.role, turn.text.strip()) for turn in placed]
        self._refuse_control_tokens((turn.text for turn in turns), source)
        before, question, after = self._render(turns)
        student, truncated = self._outputs(before + question + after, sample), False
        while (excess := len(student["input_ids"]) - self.max_length) > 0:
            special = self.processor.chat_template is None
            text = before + question + after
            offsets = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)["offset_mapping"]
            end = len(before) + len(question)
            starts = [start for start, stop in offsets if len(before) <= start < stop <= end]
            if len(starts) <= excess:
                raise DataError.at(
                    source,
                    f"{len(student['input_ids'])} tokens of the source do not fit max_length={self.max_length}, even "
                    "without its last question; raise max_length",
                )
            question = question[: starts[-excess] - len(before)]
            student, truncated = self._outputs(before + question + after, sample), True
        return student, truncated

    def _outputs(self, text: str, sample: Sample) -> dict[str, Tensor]:
        """Return the outputs of the processor for the text of the source and its images, without a batch dimension."""
        special = self.processor.chat_template is None
        if self._image_token is None:
            ids = torch.tensor(self.tokenizer(text, add_special_tokens=special)["input_ids"])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        images = list(sample.images) or None
        outputs = self.processor(text=[text], images=images, return_tensors="pt", add_special_tokens=special)
        tokens = torch.ones(outputs["input_ids"].shape[1], dtype=torch.bool)
        return selected(outputs, tokens, type(self.processor).__name__)

    def _render(self, turns: Sequence[Turn]) -> tuple[str, str, str]:
        """Return the text of the source in three parts: before the last question, the question, and after it.

        The question is its text behind the last image.
        """
        last, question = "", turns[-1].text
        if self._image_token is not None:
            former, separator, question = question.rpartition(IMAGE)
            last = former + separator
        if self.processor.chat_template is None:
            texts = [*(f"{turn.text}\n" for turn in turns[:-1]), last]
            return "".join(texts).replace(IMAGE, self._image_token or IMAGE), question, ""
        messages = [{"role": turn.role, "content": self._content(turn.text)} for turn in turns[:-1]]
        bracketed = f"{last}{OPEN}{question.strip()}{CLOSE}"
        messages.append({"role": turns[-1].role, "content": self._content(bracketed)})
        text = self._rendered(messages, add_generation_prompt=True)
        bos = self.tokenizer.bos_token
        before, _, remainder = (text.removeprefix(bos) if bos else text).partition(OPEN)
        question, _, after = remainder.partition(CLOSE)
        return before, question, after

    def _content(self, text: str) -> str | list[dict[str, str]]:
        """Return the content of a turn for the chat template."""
        return text if self._image_token is None else parts_of(text)

    def _find_turn_end(self) -> str:
        """Return the token that ends an assistant turn in the template, or else the end-of-sequence token."""
        end = str(self.tokenizer.eos_token)
        if self.processor.chat_template is None:
            return end
        turns = (("user", "a"), ("assistant", f"b{CLOSE}"))
        probe = [{"role": role, "content": self._content(text)} for role, text in turns]
        tail = self._rendered(probe).partition(CLOSE)[2]
        control_token = self._first_control_token(tail)
        return end if control_token is None else control_token[1]


def _stack(tensors: list[Tensor], fill: int) -> Tensor:
    """Return tensors [L] padded on the right to the longest and stacked to [B, L]."""
    return stacked(tensors, max(map(len, tensors)), fill, "right")
