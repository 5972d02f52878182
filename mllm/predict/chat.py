"""A conversation at the terminal: every question is asked with what was said before it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

from mllm.errors import DataError
from mllm.predict.options import answers
from mllm.structures import IMAGE, Answer, Bundle, Sample, Turn

logger = logging.getLogger("mllm.pipeline.predict")
HELP = "a line is a question; /clear forgets what was said, /quit or Ctrl-D ends"


@dataclass
class Chat:
    """The exchanges so far, and the images that the next question shows."""

    bundle: Bundle
    limit: int
    """Tokens that a conversation may have before its next answer; what was said first is forgotten beyond it."""
    said: list[tuple[Turn, Turn, list[Image.Image]]] = field(default_factory=list)
    """Questions with their answers and images."""
    asked: int = 0

    def ask(self, question: str, images: list[Image.Image], arguments: argparse.Namespace) -> Answer:
        """The answer, which becomes part of the conversation; raises `DataError` where the question cannot be asked."""
        text = question if IMAGE in question else IMAGE * len(images) + question
        turn = Turn("user", text)
        sample = self._within_limit(turn, images)
        answer = answers(self.bundle, [sample], arguments, shift=self.asked)[0]
        self.asked += 1
        # Said again to the model as text: a placeholder in it would stand for an image.
        self.said.append((turn, Turn("assistant", answer.text.replace(IMAGE, "")), images))
        return answer

    def _within_limit(self, turn: Turn, images: list[Image.Image]) -> Sample:
        """The conversation up to this question, without the first exchanges where it would be too long."""
        forgotten = 0
        while not self._fits(sample := self._conversation(turn, images)) and self.said:
            del self.said[0]
            forgotten += 1
        if forgotten:
            logger.warning("the conversation is too long for the model; forgotten from its begin: %d", forgotten)
        return sample

    def _conversation(self, turn: Turn, images: list[Image.Image]) -> Sample:
        """All that was said, and the question."""
        turns = [spoken for question, answer, _ in self.said for spoken in (question, answer)]
        shown = [image for _, _, earlier in self.said for image in earlier]
        return Sample([*turns, turn], [*shown, *images], source="the question")

    def _fits(self, sample: Sample) -> bool:
        """Whether nothing of it is cut and room for the answer is left; the question alone is asked in any case."""
        try:
            encoded = self.bundle.encoder.prompt(sample)
        except DataError:
            if len(sample.turns) == 1:
                raise
            return False
        return not encoded.truncated and len(encoded) <= self.limit


def chat(bundle: Bundle, images: list[Image.Image], arguments: argparse.Namespace) -> None:
    """Answers what is typed, line by line, until it ends; `images` are shown with the first question."""
    config = bundle.model.pretrained.config.get_text_config(decoder=True).to_dict()
    # T5 counts distances and has no last position; there the encoder's own limit is the only one.
    positions = config.get("max_position_embeddings") or sys.maxsize
    talk = Chat(bundle, max(1, positions - arguments.max_new_tokens))
    logger.info("%s", HELP)
    for line in _typed():
        if line == "/clear":
            talk.said.clear()
            continue
        try:
            answer = talk.ask(line, images, arguments)
        except DataError as error:
            logger.warning("%s", error)
            continue
        images = []
        print(answer.text, flush=True)


def _typed() -> Iterator[str]:
    """The lines of standard input that are not empty, with a prompt where somebody types."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line:
            yield line
