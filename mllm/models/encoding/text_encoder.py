"""Base class of the encoders of models that generate text."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from torch import Tensor
from transformers import ProcessorMixin

from mllm.errors import ConfigError, DataError
from mllm.models.encoding.chat_template import CLOSE, OPEN, with_variables
from mllm.models.encoding.marks import source_of
from mllm.models.encoding.synthetic import synthetic_samples
from mllm.models.encoding.text_processor import TextProcessor
from mllm.structures import IMAGE, Answer, Batch, Encoded, Frame, Mark, Sample, Turn

_TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors of a template, and of the expressions in it."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""Token for a byte of a character that is not in the vocabulary."""


class TextEncoder(ABC):
    """Conversion of conversations to token ids, labels and pixels. Implements `mllm.protocols.Encoder`.

    `chat_template` replaces that of the checkpoint, and `template_args` sets variables of the template. `system` is the
    system turn of conversations that have none.
    """

    turn_end: str
    """Text that ends an assistant turn."""
    decoder_start_id: int | None = None
    """First input of the decoder of an encoder-decoder. None: the model has one sequence."""
    forced_start_id: int | None = None
    """Token that generation writes first, such as a language. None: the model writes it freely."""

    def __init__(
        self,
        processor: ProcessorMixin | TextProcessor,
        *,
        max_length: int,
        system: str | None = None,
        chat_template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        # Older checkpoints have their template in `tokenizer_config.json` only, where the processor does not look.
        template: Any = chat_template or processor.chat_template or processor.tokenizer.chat_template
        if template is not None:
            processor.chat_template = template
        if template_args:
            if template is None:
                raise ConfigError("model_args.template_args is set, but the model has no chat template")
            template = with_variables(template, template_args)
            processor.chat_template = template
        self.processor: Any = processor
        self.tokenizer: Any = processor.tokenizer
        self.views: tuple[str, ...] = ()
        self.measures: tuple[str, ...] = ()
        self.max_length, self.system = max_length, system
        self._special_tokens: dict[int, str] = {
            token_id: token.content for token_id, token in self.tokenizer.added_tokens_decoder.items() if token.special
        }
        self._control_tokens = list(self._special_tokens.values())
        """Tokens that the text of a sample must not contain."""

    @abstractmethod
    def encode(self, sample: Sample) -> Encoded:
        """Encode a conversation with its labels. Raise `DataError` if the sample cannot be used."""

    @abstractmethod
    def prompt(self, sample: Sample) -> Encoded:
        """Encode a conversation up to the answer, without labels. A last assistant turn is left out."""

    @abstractmethod
    def pad(self, samples: Sequence[Encoded], side: str = "right") -> Batch:
        """Return a batch of padded samples."""

    @abstractmethod
    def reference(self, sample: Sample) -> Answer:
        """Return the reference answer: the last assistant turn."""

    @abstractmethod
    def text_in(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens, with the texts of boxes and objects in it."""

    def settled_tokens(self, tokens: Sequence[int]) -> Sequence[int]:
        """Return the first tokens whose text does not depend on later ones: all but a run of bytes at the end.

        A run of tokens for single bytes (SentencePiece) is read as a whole: an invalid one makes all bytes invalid. It
        goes on behind tokens without text, which are left out.
        """
        end = len(tokens)
        while end and self._continues_bytes(int(tokens[end - 1])):
            end -= 1
        return tokens[:end]

    def _continues_bytes(self, token: int) -> bool:
        """Return True for a token of a byte, and for one without text: a special token, or a number without a token."""
        piece = self.tokenizer.convert_ids_to_tokens(token)
        return token in self._special_tokens or piece is None or bool(_BYTE.fullmatch(piece))

    def settled(self, text: str) -> str:
        """Return the part of an answer that stays equal however its text goes on.

        Args:
            text: Result of `text_in` for `settled_tokens`.
        """
        # Spaces at the end are removed from an answer, and a replacement character may be a part of a character.
        return text.rstrip().rstrip("\ufffd").rstrip()

    @abstractmethod
    def read_text(self, text: str, frames: Sequence[Frame] = (), marks: Sequence[Mark] | None = None) -> Answer:
        """Return the answer in a text, the result of `text_in`. `marks` are the predictions of the heads."""

    def read_answer(self, tokens: Tensor, frames: Sequence[Frame] = (), marks: Sequence[Mark] | None = None) -> Answer:
        """Return the answer in generated tokens [L]. `marks` are the predictions of the heads."""
        return self.read_text(self.text_in(tokens.tolist()), frames, marks)

    @property
    def turn_end_id(self) -> int:
        """Return the token id that ends an answer: its control token, or else its last one. Generation stops at it."""
        ids: list[int] = self.tokenizer(self.turn_end, add_special_tokens=False)["input_ids"]
        return next((token_id for token_id in ids if token_id in self._special_tokens), ids[-1])

    @property
    def object_id(self) -> int:
        """Return the id of the token that represents an object. -1: there is none."""
        return -1

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        """Return the token ids that represent images."""
        return tuple(self.processor.image_token_ids)

    def synthetic(self, count: int) -> list[Sample]:
        """Return `count` artificial conversations. The first fills `max_length`, each next one is half as long."""
        return synthetic_samples(count, self.max_length, reads_images=not isinstance(self.processor, TextProcessor))

    @property
    def _pad_id(self) -> int:
        pad: int | None = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def _with_system_turn(self, turns: Sequence[Turn]) -> list[Turn]:
        """Return the turns, with `system` before them if they have no system turn."""
        if self.system and not any(turn.role == "system" for turn in turns):
            return [Turn("system", self.system), *turns]
        return list(turns)

    def _with_placed_images(self, sample: Sample, turns: Sequence[Turn]) -> list[Turn]:
        """Return the turns with a placeholder for each image of a sample; without any, the images come first.

        Raise `DataError` for a placeholder in an answer, and for other numbers of placeholders than of images.
        """
        placed = self._with_system_turn(turns)
        if any(turn.role == "assistant" and IMAGE in turn.text for turn in placed):
            raise DataError.at(source_of(sample), f"an answer contains {IMAGE}; only questions can show images")
        placeholders = sum(turn.text.count(IMAGE) for turn in placed)
        first = next((i for i, turn in enumerate(placed) if turn.role == "user"), None)
        if placeholders == 0 and sample.images and first is not None:
            placed[first] = Turn("user", IMAGE * len(sample.images) + placed[first].text)
        elif placeholders != len(sample.images):
            raise DataError.at(
                source_of(sample), f"the text has {placeholders} {IMAGE} placeholders for {len(sample.images)} images"
            )
        return placed

    def _refuse_control_tokens(self, texts: Iterable[str], source: str) -> None:
        """Raise `DataError` if a text contains a control token, which could end a turn or stand for an object.

        A lone surrogate is refused too: it is half of a character, and no tokenizer reads it.
        """
        for text in texts:
            surrogate = re.search("[\ud800-\udfff]", text)
            if surrogate:
                raise DataError.at(
                    source,
                    f"the text contains half of a character (the lone surrogate U+{ord(surrogate[0]):04X}); write the "
                    "file again as UTF-8",
                )
            for token in (OPEN, CLOSE, *self._control_tokens):
                if token in text:
                    raise DataError.at(source, f"the text contains the control token {token!r}; remove it")

    def _rendered(self, messages: list[Any], source: str | None = None, **options: Any) -> str:
        """Return messages as the chat template writes them.

        Raises:
            DataError: The template refuses the messages of the row `source`.
            ConfigError: The template cannot be used at all; `source` is None.
        """
        try:
            return str(self.processor.apply_chat_template(messages, tokenize=False, **options))
        except _TEMPLATE_ERRORS as error:
            if source is None:
                raise ConfigError(f"the chat template cannot be used: {error}") from error
            raise DataError(
                f"{source}: the chat template refuses it: {error}", "the chat template refuses it"
            ) from error

    def _first_control_token(self, text: str) -> tuple[int, str] | None:
        """Return the position and the text of the first control token in `text`, or None."""
        return min(((text.find(token), token) for token in self._control_tokens if token in text), default=None)


def parts_of(text: str) -> list[dict[str, str]]:
    """Return the content of a question for a chat template: its texts, and images in place of the placeholders."""
    parts: list[dict[str, str]] = []
    for i, piece in enumerate(text.split(IMAGE)):
        if i:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts or [{"type": "text", "text": ""}]


def without_answer(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns without the last one if it is an answer."""
    return list(turns[:-1] if turns and turns[-1].role == "assistant" else turns)
