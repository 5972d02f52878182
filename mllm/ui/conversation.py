"""Conversation of a person with one or several models about pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mllm.errors import DataError
from mllm.predict.model_answer import ModelAnswer
from mllm.structures import IMAGE

if TYPE_CHECKING:
    from PIL import Image

_PLACEHOLDER = re.compile(re.escape(IMAGE))


class Asker(Protocol):
    """Source of answers, such as a loaded model or the queue of a server."""

    @property
    def names(self) -> list[str]:
        """Return the names of the models."""

    def stream(
        self,
        images: Any,
        question: str,
        *,
        after: ModelAnswer | None,
        model: str,
        is_cancelled: Callable[[], bool],
        **options: Any,
    ) -> Generator[str, None, ModelAnswer]:
        """Yield the pieces of the answer of a model, and return the answer. Raise `UserError`.

        A queue has the question when the generator is returned.
        """

    def measure(self, views: Mapping[str, Image.Image]) -> ModelAnswer:
        """Return the measures of the images of named views. Raise `UserError`."""


@dataclass(frozen=True)
class Shown:
    """Picture that a question is about."""

    image: Image.Image
    caption: str
    key: object
    """Identity: two equal keys are one picture."""


@dataclass(frozen=True)
class Exchange:
    """Question with the answer of each model."""

    question: str
    new: tuple[Shown, ...]
    """Pictures that came with this question."""
    pictures: tuple[Shown, ...]
    """Pictures of the conversation up to this question, to which `Mark.image` refers."""
    answers: dict[str, ModelAnswer]
    modality: str = ""
    """Text before the question; empty: none."""
    written: dict[str, str] = field(default_factory=dict)
    """Text of each answer so far."""


@dataclass
class Conversation:
    """Questions and answers, in order. All models have the same questions."""

    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def pictures(self) -> tuple[Shown, ...]:
        """Return the pictures of all questions."""
        return self.exchanges[-1].pictures if self.exchanges else ()

    def ask(
        self,
        asker: Asker,
        models: Sequence[str],
        question: str,
        shown: Shown | None,
        is_stopped: Callable[[], bool],
        **options: Any,
    ) -> Iterator[Exchange]:
        """Ask the models, and append the exchange.

        All questions are in the queue before the first answer, so that none waits for requests that arrive later. Yield
        the exchange as far as it is written, the answer of one model after the other; answers begin empty.

        The picture belongs to the question if the conversation does not end with it already. A question about another
        slice adds that slice, and one about the same slice adds nothing. `is_stopped` ends the answers, which keep the
        text until then; models that were not asked by then have an empty answer.

        Raises:
            UserError: The question is empty, a model cannot answer it, or no answer had begun when it was stopped. The
                conversation is unchanged.
        """
        question = _PLACEHOLDER.sub(" ", question).strip()
        if not question:
            raise DataError("the question is empty: write one into the field")
        if not models:
            raise DataError("no model is selected: select at least one")
        known = bool(self.pictures) and shown is not None and self.pictures[-1].key == shown.key
        new = () if shown is None or known else (shown,)
        # The conversation may change while the models answer, such as by another question.
        pictures, before = (*self.pictures, *new), {name: self._last_answer(name) for name in models}
        exchange = Exchange(question, new, pictures, {}, options.get("modality", ""))
        yield exchange
        with ExitStack() as streams:
            answers = {}
            for name, after in before.items():
                # A model that did not answer the last question has not seen its pictures.
                images = [picture.image for picture in pictures[len(after.images) if after else 0 :]] or None
                stream = asker.stream(images, question, after=after, model=name, is_cancelled=is_stopped, **options)
                streams.callback(stream.close)
                answers[name] = stream
            for name, pieces in answers.items():
                exchange.written[name] = ""
                if is_stopped():
                    exchange.answers[name] = ModelAnswer("", model=name, end="cancelled")
                    continue
                while name not in exchange.answers:
                    try:
                        exchange.written[name] += next(pieces)
                    except StopIteration as end:
                        exchange.answers[name] = end.value
                    yield exchange
        if is_stopped() and not any(answer.text for answer in exchange.answers.values()):
            raise DataError("it was stopped before an answer began: ask again")
        self.exchanges.append(exchange)

    def _last_answer(self, model: str) -> ModelAnswer | None:
        """Return the last answer of a model; None without any. One that was stopped before it began is none."""
        answers = [exchange.answers[model] for exchange in self.exchanges if model in exchange.answers]
        return next((one for one in reversed(answers) if one.text or one.end != "cancelled"), None)

    def measure(self, asker: Asker, views: Sequence[str], chosen: Mapping[str, Shown]) -> None:
        """Append the measures of the pictures that were chosen for the views. Raise `UserError`."""
        for view in views:
            if view not in chosen:
                raise DataError(f"the view {view} has no picture: show it, and press 'Use the picture'")
        shown = [Shown(chosen[view].image, f"{view}: {chosen[view].caption}", chosen[view].key) for view in views]
        if len({str(one.key) for one in shown}) < len(shown):
            raise DataError(f"{' and '.join(views)} are one picture: choose another one for one of them")
        answer = asker.measure({view: chosen[view].image for view in views})
        self.exchanges.append(Exchange("", tuple(shown), tuple(shown), {asker.names[0]: answer}))
