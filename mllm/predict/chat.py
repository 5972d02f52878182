"""Interactive conversation at the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL.Image import Image

from mllm.errors import DataError
from mllm.models.generation.options import GenerationOptions
from mllm.predict.loaded_model import LoadedModel
from mllm.predict.model_answer import ModelAnswer
from mllm.predict.request import Request
from mllm.structures import IMAGE, Sample, Turn

logger = logging.getLogger(__name__)
COMMANDS = "/clear deletes the conversation; /quit or Ctrl-D ends the program"
HELP = f"Type a question and press Enter. {COMMANDS}."


@dataclass
class Exchange:
    """One question of a conversation with its answer and images."""

    question: Turn
    answer: Turn
    images: Sequence[Image]


@dataclass
class Conversation:
    """A conversation with a model; each question is encoded together with the preceding exchanges."""

    model: LoadedModel
    max_prompt_tokens: int
    """Maximum length of the encoded conversation; the oldest exchanges are removed beyond it."""
    options: GenerationOptions
    exchanges: list[Exchange] = field(default_factory=list)
    count: int = 0
    """Number of answered questions, including removed ones."""

    def ask(self, question: str, images: Sequence[Image] = ()) -> ModelAnswer:
        """Return the answer to `question` about `images` and append both to the conversation.

        Raises `DataError` if the question alone cannot be encoded.
        """
        text = question if IMAGE in question else IMAGE * len(images) + question
        turn = Turn("user", text)
        sample = self._shorten(turn, images)
        ((answer,),) = self.model.answer_all([Request(sample, self.options, number=self.count)])
        self.count += 1
        # A placeholder in a generated answer would stand for an image in the next prompt.
        self.exchanges.append(Exchange(turn, Turn("assistant", answer.text.replace(IMAGE, "")), images))
        return answer

    def sample(self, turn: Turn, images: Sequence[Image]) -> Sample:
        """Return the whole conversation followed by `turn`."""
        turns = [turn for exchange in self.exchanges for turn in (exchange.question, exchange.answer)]
        former_images = [image for exchange in self.exchanges for image in exchange.images]
        return Sample([*turns, turn], [*former_images, *images], source="the question")

    def _shorten(self, turn: Turn, images: Sequence[Image]) -> Sample:
        """Remove the oldest exchanges until the conversation with `turn` fits, and return it."""
        removed = 0
        while not self._fits(sample := self.sample(turn, images)) and self.exchanges:
            del self.exchanges[0]
            removed += 1
        if removed:
            logger.warning("the conversation is too long for the model; oldest exchanges removed: %d", removed)
        return sample

    def _fits(self, sample: Sample) -> bool:
        """Return True if the sample leaves room for the answer.

        Raises the `DataError` of a sample that consists of one question only.
        """
        try:
            prepared = self.model.prepare(Request(sample, self.options))
        except DataError:
            if len(sample.turns) == 1:
                raise
            return False
        return len(prepared.prompt) <= self.max_prompt_tokens


def chat(model: LoadedModel, images: Sequence[Image], options: GenerationOptions) -> None:
    """Answer the lines of standard input until it ends.

    `images` belong to the first question, and to the first one after `/clear`.
    """
    conversation = Conversation(model, max(1, model.context_length - options.max_new_tokens), options)
    logger.info("%s", HELP)
    unused = images
    for line in _lines():
        if line == "/clear":
            conversation.exchanges.clear()
            unused = images
            continue
        if line.startswith("/"):
            logger.warning("unknown command %s; %s", line.split()[0], COMMANDS)
            continue
        try:
            answer = conversation.ask(line, unused)
        except DataError as error:
            logger.warning("%s", error)
            continue
        unused = []
        print(answer.text, flush=True)


def _lines() -> Iterator[str]:
    """Yield the non-empty lines of standard input, with a prompt on a terminal."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line:
            yield line
