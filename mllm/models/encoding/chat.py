"""Encoder of decoder-only models: one sequence of token ids with labels on the answers, and pixels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import ProcessorMixin

from mllm.errors import ConfigError, DataError, errors_of_row
from mllm.models.encoding.chat_template import CLOSE, END_OF_THOUGHT, OPEN, THINK, read_answer_form
from mllm.models.encoding.image_features import FeatureReader, with_features
from mllm.models.encoding.marks import MarkWriter, source_of
from mllm.models.encoding.packing import LAYOUT, RowLayout
from mllm.models.encoding.padding import stacked
from mllm.models.encoding.processor_outputs import cut, images_per_row, joined, text_of
from mllm.models.encoding.segments import SegmentTokenizer
from mllm.models.encoding.sharing import digest_of
from mllm.models.encoding.text_encoder import TextEncoder, parts_of, without_answer
from mllm.models.encoding.text_processor import TextProcessor, mean_color
from mllm.structures import IGNORE, IMAGE, Answer, Batch, Encoded, Frame, Mark, Sample, Turn
from mllm.supervision import unsupervised


class ChatEncoder(TextEncoder):
    """Encoder of conversations about images, with labels on the assistant turns only.

    The position of an answer is known by construction: the conversation before it is rendered with the generation
    prompt, the answer and its end follow, and each part is tokenized separately. So training supervises exactly the
    tokens that follow the prompt in generation. No label is found by searching.

    An earlier answer is supervised where the template writes it as in generation. Templates of models that think leave
    out the thought of earlier answers; with them only the last answer is supervised.
    """

    def __init__(
        self,
        processor: ProcessorMixin | TextProcessor,
        *,
        max_length: int,
        turn_end: str | None = None,
        system: str | None = None,
        chat_template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        marks: MarkWriter | None = None,
        types_of_suffix: bool = False,
    ) -> None:
        super().__init__(
            processor, max_length=max_length, system=system, chat_template=chat_template, template_args=template_args
        )
        self.stored_features: FeatureReader | None = None
        """Features of images that replace their pixels, if they are stored."""
        self.shares_images = False
        """Add a digest of the images to each sample, by which samples share tokens."""
        self.types_of_suffix = types_of_suffix
        """The model attends to the prompt in both directions: `token_type_ids` are 0 in it, and 1 from the first answer
        on, as in PaliGemma."""
        self.marks = MarkWriter() if marks is None else marks
        if self.marks.background is None:
            self.marks = self.marks.with_background(mean_color(processor))
        self._control_tokens = [token for token in self._control_tokens if token != IMAGE]
        box_tokens = self.marks.box_format.tokens
        self._skipped_ids = {token_id for token_id, token in self._special_tokens.items() if token not in box_tokens}
        """Special tokens that are left out of the text of an answer."""
        if not self.processor.chat_template:
            raise ConfigError(
                "the model has no chat template; use an instruction-tuned checkpoint (its name ends in -it), or set "
                "model_args.chat_template"
            )
        self._form = read_answer_form(self._rendered, self._control_tokens, self.tokenizer.eos_token, turn_end)
        self.turn_end = self._form.end
        skipped = "|".join(re.escape(self._special_tokens[token_id]) for token_id in self._skipped_ids)
        self._decoded_opening = (re.sub(skipped, "", self._form.opening) if skipped else self._form.opening).strip()
        """The opening of an answer as it stands in the text of generated tokens, without special tokens."""
        images = [self._special_tokens.get(token_id, IMAGE) for token_id in self.image_token_ids]
        reserved = {*self.marks.box_format.tokens, *images}
        self._segment_tokenizer = SegmentTokenizer(processor, reserved=reserved)

    def encode(self, sample: Sample) -> Encoded:
        """Encode a conversation up to its last answer, with labels on the assistant turns and their end-of-turn tokens.

        The token ids are those of `prompt`, then those of the answer, which are all supervised. A long last answer is
        cut at its end, and the result has `truncated=True`. Raise `DataError` if the conversation has no answer or an
        empty one, or if `max_length` would cut an image or leave no label.
        """
        last = max((i for i, turn in enumerate(sample.turns) if turn.role == "assistant"), default=None)
        if last is None:
            raise DataError.at(source_of(sample), "the conversation has no answer to learn from")
        turns = sample.turns[: last + 1]
        if any(turn.role == "assistant" and not turn.text.strip() for turn in turns):
            raise DataError.at(source_of(sample), "an answer is empty; remove the row or write the answer")
        with errors_of_row(source_of(sample)):
            encoded = self._encode(replace(sample, turns=turns), supervised=True)
        return self._truncate(encoded, source_of(sample))

    def prompt(self, sample: Sample) -> Encoded:
        """Encode a conversation with the generation prompt, without labels. A last assistant turn is left out."""
        with errors_of_row(source_of(sample)):
            encoded = self._encode(replace(sample, turns=without_answer(sample.turns)), supervised=False)
        return replace(encoded, targets=unsupervised(encoded.targets))

    def text_in(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens without special tokens and without the opening of an answer."""
        text = self.tokenizer.decode([token for token in tokens if token not in self._skipped_ids]).strip()
        return str(text).removeprefix(self._decoded_opening).lstrip()

    def settled(self, text: str) -> str:
        """Return the part of an answer that stays equal however its text goes on."""
        text = super().settled(text)
        if self._decoded_opening.startswith(text):
            return ""
        # A separator after an object token belongs to the text of the objects if another token follows.
        return self.marks.box_format.plain(text.rstrip(" \n\t;") if self.marks.box_format.needs_heads else text)

    def read_text(self, text: str, frames: Sequence[Frame] = (), marks: Sequence[Mark] | None = None) -> Answer:
        """Return the answer in a text. `marks` are the predictions of the heads at object tokens.

        Boxes and points in the text belong to the first image.
        """
        box_format = self.marks.box_format
        parsed, unreadable = (tuple(marks or ()), 0) if box_format.needs_heads else self.marks.read(text, frames)
        return Answer(box_format.plain(text), parsed, unreadable)

    def reference(self, sample: Sample) -> Answer:
        """Return the reference answer: the last assistant turn as the model should write it, marks, and measures."""
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
        inputs = [
            {name: tensor for name, tensor in sample.student.items() if not name.startswith("object_")}
            for sample in samples
        ]
        student = joined(inputs, self._pad_id, side)
        labels = stacked([sample.targets["labels"] for sample in samples], max(lengths), IGNORE, side)
        shifts = (max(lengths) - torch.tensor(lengths)) * (side == "left")
        objects, known = self.marks.padded(samples, shifts)
        images = tuple(index for index, sample in enumerate(samples) for _ in sample.frames)
        return Batch(student | objects, {"labels": labels, **known}, images=images)

    def pad_shared(self, samples: Sequence[Encoded], leaders: Sequence[int], shared: Sequence[int]) -> Batch:
        """Return a batch of samples that share their first tokens, which has the images of their leaders only.

        Args:
            samples: Encoded samples.
            leaders: Index of the sample whose first tokens a sample shares; its own: none.
            shared: Number of tokens that a sample shares with its leader; of a leader, those that others share with it.
        """
        reduced = [
            sample if leader == index else replace(sample, student=text_of(sample.student), frames=())
            for index, (sample, leader) in enumerate(zip(samples, leaders, strict=True))
        ]
        batch = self.pad(reduced)
        return replace(batch, student=batch.student | {LAYOUT: RowLayout.of(samples, leaders, shared)})

    def _encode(self, sample: Sample, supervised: bool) -> Encoded:
        """Write the marks of a sample, render its turns and tokenize the text.

        `supervised`: the last turn is the answer.
        """
        self._refuse_control_tokens((*(turn.text for turn in sample.turns), self.system or ""), source_of(sample))
        framed, frames, objects = self.marks.prepare(sample)
        segments = self._segments(replace(framed, turns=without_answer(framed.turns) if supervised else framed.turns))
        if supervised:
            segments.append(self._form.written(framed.turns[-1].text.strip()))
        encoded = self._tokenize(framed, segments)
        positions = (encoded.student["input_ids"] == self.object_id).nonzero().squeeze(1)
        objects_of_student, targets = self.marks.tensors(objects, frames, positions)
        shares = self.shares_images and bool(sample.images)
        features = self.stored_features.read(sample.images) if self.stored_features and sample.images else None
        student = encoded.student if features is None else with_features(encoded.student, features)
        return replace(
            encoded,
            student=student | objects_of_student,
            targets=encoded.targets | targets,
            frames=frames,
            image_key=digest_of(sample.images) if shares else None,
            image_end=self._end_of_images(encoded) if shares else 0,
            has_features=features is not None or (self.stored_features is not None and not sample.images),
        )

    def _end_of_images(self, encoded: Encoded) -> int:
        """Return the number of tokens up to the end of the last image."""
        images = torch.isin(encoded.student["input_ids"], torch.tensor(self.image_token_ids)).nonzero()
        return int(images.max()) + 1 if len(images) else 0

    @property
    def object_id(self) -> int:
        """Return the id of the token that represents an object. -1: there is none."""
        token = self.marks.box_format.object_token
        if token is None:
            return -1
        assert token in self._control_tokens, f"{token} is not a special token of the tokenizer"
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def _messages(self, sample: Sample) -> list[Any]:
        """Return the turns as messages for the chat template, with brackets around the answers."""
        turns = self._with_placed_images(sample, sample.turns)
        return [{"role": turn.role, "content": self._content(turn)} for turn in turns]

    def _content(self, turn: Turn) -> list[dict[str, str]]:
        """Return the content of a turn as a list of texts and images."""
        if turn.role == "assistant":
            end = "" if self._form.writes_end else self.turn_end
            return [{"type": "text", "text": f"{OPEN}{turn.text.strip()}{end}{CLOSE}"}]
        return parts_of(turn.text)

    def _segments(self, sample: Sample) -> list[str]:
        """Return the rendered conversation with its generation prompt: prompts and answers by turns.

        An answer begins where the generation prompt ends, and ends with the end of its turn.
        """
        rendered = self._rendered(self._messages(sample), source_of(sample), add_generation_prompt=True)
        text, *pieces = rendered.split(OPEN)
        earlier = sum(turn.role == "assistant" for turn in sample.turns)
        if CLOSE in text or len(pieces) != earlier or any(piece.count(CLOSE) != 1 for piece in pieces):
            raise DataError.at(
                source_of(sample),
                f"the chat template leaves out a part of an earlier answer, such as its thought in {THINK}..."
                f"{END_OF_THOUGHT}; remove this part, or make a row of each answer",
            )
        segments = [text]
        for piece in pieces:
            answer, _, remainder = piece.partition(CLOSE)
            # A template may open and end an earlier answer differently, for example without its reasoning.
            opening = self._form.opening if segments[-1].endswith(self._form.opening) else ""
            end = self.turn_end if self._form.writes_end and remainder.startswith(self.turn_end) else ""
            segments[-1] = segments[-1].removesuffix(opening)
            segments += [f"{opening}{answer}{end}", remainder.removeprefix(end)]
        return segments

    def _tokenize(self, sample: Sample, segments: Sequence[str]) -> Encoded:
        """Return token ids, pixels and labels of prompts and answers by turns."""
        student, ends = self._segment_tokenizer(segments, sample.images)
        ids = student["input_ids"]
        labels = torch.full_like(ids, IGNORE)
        answers = list(zip(ends[::2], ends[1::2], strict=False))
        for start, end in answers if self._form.trains_earlier_answers else answers[-1:]:
            labels[start:end] = ids[start:end]
        if self.types_of_suffix:
            student["token_type_ids"] = (torch.arange(len(ids)) >= ends[0]).long()
        return Encoded(student, {"labels": labels}, sample.source, images_per_row=images_per_row(student))

    def _truncate(self, encoded: Encoded, source: str) -> Encoded:
        """Return the first `max_length` tokens. Raise `DataError` if that cuts an image or leaves no label."""
        length = len(encoded)
        if length <= self.max_length:
            return encoded
        tail = encoded.student["input_ids"][self.max_length :]
        if torch.isin(tail, torch.tensor(self.processor.image_token_ids)).any():
            raise DataError.at(
                source,
                f"{length} tokens do not fit max_length={self.max_length}, and the cut would be inside an "
                "image; raise max_length or lower image_token_len",
            )
        labels = encoded.targets["labels"][: self.max_length]
        if (labels[1:] == IGNORE).all():
            raise DataError.at(
                source,
                f"the answer starts after max_length={self.max_length} (the sample has {length} tokens), so "
                "no label is left; raise max_length or shorten the question",
            )
        student = cut(encoded.student, self.max_length)
        student, targets = self.marks.cut(student, {**encoded.targets, "labels": labels}, self.max_length)
        return replace(encoded, student=student, targets=targets, truncated=True)
