"""Encoder of decoder-only models: one sequence of token ids with labels on the answers, and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import ProcessorMixin

from mllm.errors import ConfigError, DataError
from mllm.models.encoding.marks import MarkWriter, source_of
from mllm.models.encoding.padding import joined_images, stacked
from mllm.models.encoding.text_encoder import CLOSE, OPEN, TextEncoder, without_answer
from mllm.models.encoding.text_processor import TextProcessor, mean_color
from mllm.structures import IGNORE, IMAGE, Answer, Batch, Encoded, Frame, Mark, Sample, Turn, unsupervised

_OFFSETS = ("offset_mapping", "text_replacement_offsets")
"""Outputs of the processor that describe the text and are not inputs of the model."""


class ChatEncoder(TextEncoder):
    """Encoder of conversations about images, with labels on the assistant turns only.

    The position of an answer is known by construction: answers are bracketed before the chat template is rendered,
    then mapped through the expansion of image placeholders to token ids by the offsets of the tokenizer. No text is
    tokenized twice, and no label is found by searching.
    """

    def __init__(
        self,
        processor: ProcessorMixin | TextProcessor,
        *,
        max_length: int,
        turn_end: str | None = None,
        system: str | None = None,
        chat_template: str | None = None,
        marks: MarkWriter | None = None,
    ) -> None:
        super().__init__(processor, max_length=max_length, system=system, chat_template=chat_template)
        self.marks = MarkWriter() if marks is None else marks
        if self.marks.background is None:
            self.marks = self.marks.with_background(mean_color(processor))
        self._control_tokens = [token for token in self._control_tokens if token != IMAGE]
        box_tokens = self.marks.box_format.tokens
        self._skipped_ids = {token_id for token_id, token in self._special_tokens.items() if token not in box_tokens}
        """Special tokens that are left out of the text of an answer."""
        self.turn_end, self._turn_end_in_template = self._find_turn_end(turn_end)

    def encode(self, sample: Sample) -> Encoded:
        """Encode a whole conversation, with labels on every assistant turn and its end-of-turn token.

        A long last answer is cut at its end, and the result has `truncated=True`. Raise `DataError` if the
        conversation has no answer, or if `max_length` would cut an image or leave no label.
        """
        if not any(turn.role == "assistant" for turn in sample.turns):
            raise DataError(f"{source_of(sample)}: the conversation has no answer to learn from")
        return self._truncate(self._encode(sample, generate=False), source_of(sample))

    def prompt(self, sample: Sample) -> Encoded:
        """Encode a conversation with the generation prompt, without labels. A last assistant turn is left out."""
        encoded = self._encode(replace(sample, turns=without_answer(sample.turns)), generate=True)
        return replace(encoded, targets=unsupervised(encoded.targets))

    def read_answer(self, tokens: Tensor, frames: Sequence[Frame] = (), marks: Sequence[Mark] | None = None) -> Answer:
        """Return the answer in generated tokens [L]. `marks` are the predictions of the heads at object tokens.

        Boxes and points in the text belong to the first image.
        """
        box_format = self.marks.box_format
        text = self.tokenizer.decode([token for token in tokens.tolist() if token not in self._skipped_ids]).strip()
        parsed, unreadable = (tuple(marks or ()), 0) if box_format.needs_heads else self.marks.read(text, frames)
        return Answer(box_format.plain(text), parsed, unreadable)

    def reference(self, sample: Sample) -> Answer:
        """Return the reference answer: the last assistant turn as the model should write it, marks and measures."""
        if not sample.turns or sample.turns[-1].role != "assistant":
            return Answer("", measures=sample.measures, group=sample.group)
        turn = sample.turns[-1]
        (written,), _ = self.marks.write(sample, [turn], self.marks.frames(sample))
        marks = tuple(sample.marks[index] for group in turn.marks for index in group)
        text = self.marks.box_format.plain(written.text.strip())
        return Answer(text, marks, measures=sample.measures, group=sample.group)

    def pad(self, samples: Sequence[Encoded], side: str = "right") -> Batch:
        """Return a batch: tensors aligned with the text padded to the longest sample, image tensors concatenated."""
        lengths = [len(sample) for sample in samples]
        names = {name: None for sample in samples for name in sample.student if not name.startswith("object_")}
        student = {}
        for name in names:
            tensors = [sample.student[name] for sample in samples if name in sample.student]
            assert tensors[0].dim() > 1 or len(tensors) == len(samples), f"a sample without {name}"
            if tensors[0].dim() == 1:
                fill = self._pad_id if name == "input_ids" else 0
                student[name] = stacked(tensors, max(lengths), fill, side)
            else:
                student[name] = joined_images(tensors)
        labels = stacked([sample.targets["labels"] for sample in samples], max(lengths), IGNORE, side)
        shifts = (max(lengths) - torch.tensor(lengths)) * (side == "left")
        objects, known = self.marks.padded(samples, shifts)
        images = tuple(index for index, sample in enumerate(samples) for _ in sample.frames)
        return Batch(student | objects, {"labels": labels, **known}, images=images)

    def _encode(self, sample: Sample, generate: bool) -> Encoded:
        """Write the marks of a sample, render its turns and tokenize the text."""
        self._refuse_control_tokens((*(turn.text for turn in sample.turns), self.system or ""), source_of(sample))
        framed, frames, objects = self.marks.prepare(sample)
        text, answers = self._render(framed, generate)
        encoded = self._tokenize(framed, text, answers)
        positions = (encoded.student["input_ids"] == self.object_id).nonzero().squeeze(1)
        student, targets = self.marks.tensors(objects, frames, positions)
        return replace(encoded, student=encoded.student | student, targets=encoded.targets | targets, frames=frames)

    @property
    def object_id(self) -> int:
        """Return the id of the token that stands for an object. -1: there is none."""
        token = self.marks.box_format.object_token
        if token is None:
            return -1
        assert token in self._control_tokens, f"{token} is not a special token of the tokenizer"
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def _messages(self, sample: Sample) -> list[Any]:
        """Return the turns as messages for the chat template, with brackets around the answers."""
        turns = self._with_system_turn(sample.turns)
        placeholders = sum(turn.text.count(IMAGE) for turn in turns)
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
        if placeholders == 0 and sample.images and first is not None:
            turns[first] = Turn("user", IMAGE * len(sample.images) + turns[first].text)
        elif placeholders != len(sample.images):
            raise DataError(
                f"{source_of(sample)}: the text has {placeholders} {IMAGE} placeholders for {len(sample.images)} images"
            )
        return [{"role": turn.role, "content": self._content(turn)} for turn in turns]

    def _content(self, turn: Turn) -> list[dict[str, str]]:
        """Return the content of a turn as a list of texts and images."""
        if turn.role == "assistant":
            end = "" if self._turn_end_in_template else self.turn_end
            return [{"type": "text", "text": f"{OPEN}{turn.text.strip()}{end}{CLOSE}"}]
        parts: list[dict[str, str]] = []
        for i, text in enumerate(turn.text.split(IMAGE)):
            if i:
                parts.append({"type": "image"})
            if text.strip():
                parts.append({"type": "text", "text": text.strip()})
        return parts or [{"type": "text", "text": ""}]

    def _render(self, sample: Sample, generate: bool) -> tuple[str, list[tuple[int, int]]]:
        """Return the rendered text without brackets, and the characters [start, end) of each answer with its end."""
        messages = self._messages(sample)
        try:
            rendered = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        except TemplateError as error:
            raise DataError(f"{source_of(sample)}: the chat template refuses it: {error}") from error
        text, answers = "", []
        for i, piece in enumerate(rendered.split(OPEN)):
            if i == 0:
                text = piece
                continue
            answer, _, rest = piece.partition(CLOSE)
            end = self.turn_end if self._turn_end_in_template else ""
            assert rest.startswith(end), "the chat template ends this turn unlike that of _find_turn_end"
            answers.append((len(text), len(text) + len(answer) + len(end)))
            text += answer + rest
        return text, answers

    def _tokenize(self, sample: Sample, text: str, answers: list[tuple[int, int]]) -> Encoded:
        """Return token ids, pixels and labels of a rendered text."""
        bos = self.tokenizer.bos_token
        tensors = self.processor(
            text=[text],
            images=sample.images or None,
            return_tensors="pt",
            return_offsets_mapping=True,
            return_text_replacement_offsets=True,
            add_special_tokens=not (bos and text.startswith(bos)),
        )
        offsets = tensors["offset_mapping"][0]
        expansions = (tensors.get("text_replacement_offsets") or [[]])[0]
        ids = tensors["input_ids"][0]
        labels = torch.full_like(ids, IGNORE)
        for answer in answers:
            start, end = (_after_expansion(character, expansions) for character in answer)
            supervised = (offsets[:, 0] < end) & (offsets[:, 1] > start)
            labels[supervised] = ids[supervised]
        student = {
            name: tensor[0] if tensor.shape[:2] == (1, len(ids)) else tensor
            for name, tensor in tensors.items()
            if name not in _OFFSETS
        }
        return Encoded(student=student, targets={"labels": labels}, source=sample.source)

    def _truncate(self, encoded: Encoded, source: str) -> Encoded:
        """Return the first `max_length` tokens. Raise `DataError` if that cuts an image or leaves no label."""
        length = len(encoded)
        if length <= self.max_length:
            return encoded
        tail = encoded.student["input_ids"][self.max_length :]
        if torch.isin(tail, torch.tensor(self.processor.image_token_ids)).any():
            raise DataError(
                f"{source}: {length} tokens do not fit max_length={self.max_length}, and the cut would fall into an "
                "image; raise max_length or lower image_token_len"
            )
        labels = encoded.targets["labels"][: self.max_length]
        if (labels[1:] == IGNORE).all():
            raise DataError(
                f"{source}: the answer starts after max_length={self.max_length} (the sample has {length} tokens), so "
                "no label is left; raise max_length or shorten the question"
            )
        student = {
            name: tensor[: self.max_length] if tensor.dim() == 1 and not name.startswith("object_") else tensor
            for name, tensor in encoded.student.items()
        }
        student, targets = self.marks.cut(student, {**encoded.targets, "labels": labels}, self.max_length)
        return replace(encoded, student=student, targets=targets, truncated=True)

    def _find_turn_end(self, turn_end: str | None) -> tuple[str, bool]:
        """Return the text that ends an assistant turn, and True if the chat template writes it."""
        probe: list[Any] = [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "text", "text": f"{OPEN}b{CLOSE}"}]},
        ]
        if not self.processor.chat_template:
            raise ConfigError(
                "the model has no chat template; use an instruction-tuned checkpoint (its name ends in -it), or set "
                "model_args.chat_template"
            )
        try:
            tail = self.processor.apply_chat_template(probe, tokenize=False).partition(CLOSE)[2]
        except TemplateError as error:
            raise ConfigError(f"the chat template cannot be used: {error}") from error
        if turn_end is not None:
            return turn_end, tail.startswith(turn_end)
        control_token = self._first_control_token(tail)
        if control_token is None:
            return self.tokenizer.eos_token, False
        start, token = control_token
        return tail[: start + len(token)], True


def _after_expansion(character: int, expansions: list[dict[str, Any]]) -> int:
    """Return the position of a character of the rendered text after the image placeholders are expanded."""
    shift = 0
    for expansion in expansions:
        if expansion["span"][1] <= character:
            shift = expansion["new_span"][1] - expansion["span"][1]
    return character + shift
