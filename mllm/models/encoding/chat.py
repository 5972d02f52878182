"""Samples become token ids, pixels and labels through the model's own processor and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import ProcessorMixin

from mllm.errors import ConfigError, DataError
from mllm.models.encoding.marks import MarkWriter
from mllm.models.encoding.padding import joined_images, stacked
from mllm.models.encoding.text_processor import TextProcessor, mean_color
from mllm.structures import IGNORE, IMAGE, Answer, Batch, Encoded, Frame, Mark, Sample, Turn, unsupervised

_OPEN, _CLOSE = "\ue000", "\ue001"
"""Private-use characters that bracket an answer while the template is rendered; they never reach the tokenizer."""

_BOOKKEEPING = ("offset_mapping", "text_replacement_offsets")
"""What the processor tells us about its text, and the model must not see."""


class ChatEncoder:
    """Speaks a model's language: encodes conversations about images with labels on the assistant's turns only.

    An answer's place is known by construction: it is bracketed before the chat template is rendered, and its
    characters are followed through the processor's image expansion to token ids by the tokenizer's own offsets.
    Nothing is tokenized twice and nothing is counted.
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
        self.processor = processor
        if chat_template is not None:
            processor.chat_template = chat_template
        self.marks = MarkWriter() if marks is None else marks
        if self.marks.background is None:
            self.marks = self.marks.against(mean_color(processor))
        self.tokenizer: Any = processor.tokenizer
        self.max_length = max_length
        self.system = system
        special = {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        self._control = [content for content in special.values() if content != IMAGE]
        self._silent = {i for i, content in special.items() if content not in self.marks.box_format.tokens}
        self.turn_end, self._turn_end_in_template = self._find_turn_end(turn_end)

    @property
    def turn_end_id(self) -> int:
        """The token id that ends an assistant's turn, where generation stops."""
        return int(self.tokenizer(self.turn_end, add_special_tokens=False)["input_ids"][-1])

    def encode(self, sample: Sample) -> Encoded:
        """A whole conversation, labels on every assistant turn with its end-of-turn token.

        Raises `DataError` where the conversation has no answer, or where `max_length` would cut an image or leave
        nothing to learn from. A longer answer is cut at its end, and the result says so.
        """
        if not any(turn.role == "assistant" for turn in sample.turns):
            raise DataError(f"{sample.source or 'a sample'}: the conversation has no answer to learn from")
        return self._truncate(self._encode(sample, generate=False), sample.source)

    def prompt(self, sample: Sample) -> Encoded:
        """The conversation up to where the assistant is to speak, without labels; a last assistant turn is left out."""
        turns = sample.turns[:-1] if sample.turns and sample.turns[-1].role == "assistant" else sample.turns
        encoded = self._encode(replace(sample, turns=list(turns)), generate=True)
        return replace(encoded, targets=unsupervised(encoded.targets))

    def read_answer(self, tokens: Tensor, frames: Sequence[Frame] = (), marks: Sequence[Mark] | None = None) -> Answer:
        """What generated tokens [L] say; `marks` are those that the model's heads found at its objects' tokens.

        Boxes and points that stand in the text lie in the first image.
        """
        box_format = self.marks.box_format
        text = self.tokenizer.decode([token for token in tokens.tolist() if token not in self._silent]).strip()
        found, unreadable = (tuple(marks or ()), 0) if box_format.needs_heads else self.marks.read(text, frames)
        return Answer(box_format.plain(text), found, unreadable)

    def reference(self, sample: Sample) -> Answer:
        """The true answer: the last assistant turn as the model should write it, with its marks and measures."""
        if not sample.turns or sample.turns[-1].role != "assistant":
            return Answer("", measures=sample.measures, group=sample.group)
        turn = sample.turns[-1]
        (written,), _ = self.marks.written(sample, [turn], self.marks.frames(sample))
        marks = tuple(sample.marks[index] for group in turn.marks for index in group)
        text = self.marks.box_format.plain(written.text.strip())
        return Answer(text, marks, measures=sample.measures, group=sample.group)

    def pad(self, samples: Sequence[Encoded], side: str = "right") -> Batch:
        """One batch: tensors aligned with the text padded to the longest sample, image tensors concatenated."""
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
        images = tuple(place for place, sample in enumerate(samples) for _ in sample.frames)
        return Batch(student | objects, {"labels": labels, **known}, images=images)

    @property
    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def _encode(self, sample: Sample, generate: bool) -> Encoded:
        """The sample's marks written, its turns rendered, its text tokenized."""
        self._refuse_control_tokens(sample)
        shown, frames, objects = self.marks.framed(sample)
        text, answers = self._render(shown, generate)
        encoded = self._tokenize(shown, text, answers)
        positions = (encoded.student["input_ids"] == self.object_id).nonzero().squeeze(1)
        student, targets = self.marks.tensors(objects, frames, positions)
        return replace(encoded, student=encoded.student | student, targets=encoded.targets | targets, frames=frames)

    @property
    def object_id(self) -> int:
        """The id of an object's token; -1 where no token stands for an object."""
        token = self.marks.box_format.object_token
        if token is None:
            return -1
        assert token in self._control, f"{token} is no special token of the tokenizer"
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def _refuse_control_tokens(self, sample: Sample) -> None:
        """Refuses control tokens in what is said, which would end turns or name places inside a text."""
        for text in (*(turn.text for turn in sample.turns), self.system or ""):
            for token in (_OPEN, _CLOSE, *self._control):
                if token in text:
                    where = sample.source or "a sample"
                    raise DataError(f"{where}: the text holds the control token {token!r}; remove it")

    def _messages(self, sample: Sample) -> list[Any]:
        """The turns as chat-template messages, answers bracketed."""
        turns = list(sample.turns)
        if self.system and not any(turn.role == "system" for turn in turns):
            turns.insert(0, Turn("system", self.system))
        placeholders = sum(turn.text.count(IMAGE) for turn in turns)
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
        if placeholders == 0 and sample.images and first is not None:
            turns[first] = Turn("user", IMAGE * len(sample.images) + turns[first].text)
        elif placeholders != len(sample.images):
            raise DataError(
                f"{sample.source or 'a sample'}: the text has {placeholders} {IMAGE} placeholders "
                f"for {len(sample.images)} images"
            )
        return [{"role": turn.role, "content": self._content(turn)} for turn in turns]

    def _content(self, turn: Turn) -> list[dict[str, str]]:
        """One turn as a list of texts and images."""
        if turn.role == "assistant":
            end = "" if self._turn_end_in_template else self.turn_end
            return [{"type": "text", "text": f"{_OPEN}{turn.text.strip()}{end}{_CLOSE}"}]
        parts: list[dict[str, str]] = []
        for i, text in enumerate(turn.text.split(IMAGE)):
            if i:
                parts.append({"type": "image"})
            if text.strip():
                parts.append({"type": "text", "text": text.strip()})
        return parts or [{"type": "text", "text": ""}]

    def _render(self, sample: Sample, generate: bool) -> tuple[str, list[tuple[int, int]]]:
        """The template's text without brackets, and the characters [start, end) of every answer with its end."""
        messages = self._messages(sample)
        try:
            rendered = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        except TemplateError as error:
            raise DataError(f"{sample.source or 'a sample'}: the chat template refuses it: {error}") from error
        text, answers = "", []
        for i, piece in enumerate(rendered.split(_OPEN)):
            if i == 0:
                text = piece
                continue
            answer, _, rest = piece.partition(_CLOSE)
            end = self.turn_end if self._turn_end_in_template else ""
            assert rest.startswith(end), "the chat template ends this turn otherwise than the ones it was probed with"
            answers.append((len(text), len(text) + len(answer) + len(end)))
            text += answer + rest
        return text, answers

    def _tokenize(self, sample: Sample, text: str, answers: list[tuple[int, int]]) -> Encoded:
        """Token ids, pixels and labels of a rendered text."""
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
            spoken = (offsets[:, 0] < end) & (offsets[:, 1] > start)
            labels[spoken] = ids[spoken]
        student = {
            name: tensor[0] if tensor.shape[:2] == (1, len(ids)) else tensor
            for name, tensor in tensors.items()
            if name not in _BOOKKEEPING
        }
        return Encoded(student=student, targets={"labels": labels}, source=sample.source)

    def _truncate(self, encoded: Encoded, source: str) -> Encoded:
        """The first `max_length` tokens; never through an image, never without a label."""
        length = len(encoded)
        if length <= self.max_length:
            return encoded
        where = source or "a sample"
        tail = encoded.student["input_ids"][self.max_length :]
        if torch.isin(tail, torch.tensor(self.processor.image_token_ids)).any():
            raise DataError(
                f"{where}: {length} tokens do not fit max_length={self.max_length}, and the cut would fall into an "
                "image; raise max_length or lower image_token_len"
            )
        labels = encoded.targets["labels"][: self.max_length]
        if (labels[1:] == IGNORE).all():
            raise DataError(
                f"{where}: the answer starts after max_length={self.max_length} (the sample has {length} tokens), so "
                "nothing would be learned from it; raise max_length or shorten the question"
            )
        student = {
            name: tensor[: self.max_length] if tensor.dim() == 1 and not name.startswith("object_") else tensor
            for name, tensor in encoded.student.items()
        }
        student, targets = self.marks.cut(student, {**encoded.targets, "labels": labels}, self.max_length)
        return replace(encoded, student=student, targets=targets, truncated=True)

    def _find_turn_end(self, wanted: str | None) -> tuple[str, bool]:
        """What ends an assistant's turn, and whether the chat template writes it itself."""
        probe: list[Any] = [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "text", "text": f"{_OPEN}b{_CLOSE}"}]},
        ]
        if not self.processor.chat_template:
            raise ConfigError(
                "the model has no chat template; use an instruction-tuned checkpoint (its name ends in -it), or write "
                "one into model_args.chat_template"
            )
        try:
            tail = self.processor.apply_chat_template(probe, tokenize=False).partition(_CLOSE)[2]
        except TemplateError as error:
            raise ConfigError(f"the chat template cannot be used: {error}") from error
        if wanted is not None:
            return wanted, tail.startswith(wanted)
        found = [(tail.find(token), token) for token in self._control if token in tail]
        if found:
            start, token = min(found)
            return tail[: start + len(token)], True
        return self.tokenizer.eos_token, False


def _after_expansion(character: int, expansions: list[dict[str, Any]]) -> int:
    """Where a character of the rendered text stands once the image placeholders before it have been expanded."""
    shift = 0
    for expansion in expansions:
        if expansion["span"][1] <= character:
            shift = expansion["new_span"][1] - expansion["span"][1]
    return character + shift
