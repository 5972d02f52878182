"""Trained model as a library: questions about images in Python, alone or in batches."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any, overload

from mllm.errors import ConfigError, DataError, hint
from mllm.models.generation.answers import measure_batch
from mllm.models.generation.generate import WINDOW
from mllm.models.generation.requested import GeneratedText, RequestedGeneration
from mllm.predict.inputs import ImageInput, Images, asked_sample, split_options, views_of
from mllm.predict.model_answer import ModelAnswer
from mllm.predict.request import Prepared, Request
from mllm.predict.shared_images import share_images
from mllm.predict.variants import Variant
from mllm.protocols import Bundle, Model
from mllm.structures import IMAGE, Answer


class LoadedModel:
    """A loaded model with one or several adapters, which answers questions.

    It is not safe to call from several threads at a time.

    Args:
        model: The loaded model.
        variants: Adapters and models by name. The first one answers unless a request names another one.
        batch_size: Number of answers that are computed together.
        shares_images: Compute the tokens of an image once for all questions about it in a batch, if that is exact.
    """

    def __init__(
        self, model: Model, variants: Mapping[str, Variant], batch_size: int = 4, shares_images: bool = True
    ) -> None:
        self.model, self.variants, self.batch_size = model, dict(variants), batch_size
        if shares_images:
            for variant in self.variants.values():
                share_images(Bundle(model, variant.encoder))

    @property
    def names(self) -> list[str]:
        """Return the names of the adapters and models."""
        return list(self.variants)

    @property
    def window(self) -> int:
        """Return the number of answers among which batches of similar length are formed."""
        return WINDOW * self.batch_size

    @property
    def context_length(self) -> int:
        """Return the maximum number of tokens of a prompt with its answer."""
        if not self.model.generates_text:
            return sys.maxsize
        config = self.model.pretrained.config.get_text_config(decoder=True).to_dict()
        # T5 has relative positions and no maximum; there only the encoder's max_length limits the prompt.
        return int(config.get("max_position_embeddings") or sys.maxsize)

    def variant(self, name: str | None = None) -> Variant:
        """Return an adapter or model by name; None: the first one. Raise `ConfigError` for an unknown name."""
        name = self.names[0] if name is None else name
        if name not in self.variants:
            raise ConfigError(f"there is no model '{name}'{hint(name, self.names)}")
        return self.variants[name]

    @overload
    def ask(self, images: Images, question: str, **options: Any) -> ModelAnswer: ...

    @overload
    def ask(self, images: Images | Sequence[Images], question: list[str], **options: Any) -> list[ModelAnswer]: ...

    def ask(
        self,
        images: Any,
        question: str | list[str],
        *,
        after: ModelAnswer | None = None,
        model: str | None = None,
        modality: str | None = None,
        **options: Any,
    ) -> ModelAnswer | list[ModelAnswer]:
        """Return the answer to a question, or the answers to a list of questions, which are computed in batches.

        Args:
            images: Image of the question: a file that training reads, a folder of DICOM slices, an object such as
                `{"path": "ct.nii.gz", "slice": 40}`, or a picture of Pillow. A list has several images of the
                question. None: the question has no image. For a list of questions: the images of all of them, or a
                list with one entry for each.
            question: Text; `<image>` marks the position of an image.
            after: Answer after which the question follows in its conversation.
            model: Name of the adapter; None: the first one.
            modality: Text before the question, as written by `VQADataset`.
            options: Options of `GenerationOptions` (`max_new_tokens`, `temperature`, `seed`, `stop`, `top_logprobs`
                ...), and of the readers of images (`frames`, `slice`, `axis`, `volume`, `page`, `window`).

        Raises:
            ConfigError: An option or the name of the model is unknown.
            DataError: An image or the question cannot be used.
        """
        chosen, reader = split_options(options)
        given: list[Any] = [images]
        questions = question if isinstance(question, list) else [question]
        if isinstance(question, list):
            given = images if isinstance(images, list) and len(images) == len(questions) else [images] * len(questions)
        requests = [
            Request(asked_sample(part, text, reader, modality, after), chosen, model, number=number)
            for number, (part, text) in enumerate(zip(given, questions, strict=True))
        ]
        answers = [answer for (answer,) in self.answer_all(requests)]
        return answers if isinstance(question, list) else answers[0]

    def stream(
        self,
        images: Images,
        question: str,
        *,
        after: ModelAnswer | None = None,
        model: str | None = None,
        modality: str | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        **options: Any,
    ) -> Generator[str, None, ModelAnswer]:
        """Yield the answer to a question in pieces while it is generated, and return it; most arguments are of `ask`.

        A generator that is closed before its end cancels the answer. An answer that `is_cancelled` ends has the text
        until then.
        """
        chosen, reader = split_options(options)
        sample = asked_sample(images, question, reader, modality, after)
        pieces: queue.Queue[str | None] = queue.Queue()
        closed = threading.Event()
        request = Request(
            sample,
            chosen,
            model,
            on_text=lambda _, piece: pieces.put(piece),
            is_cancelled=lambda: closed.is_set() or (is_cancelled is not None and is_cancelled()),
        )
        prepared = self.prepare(request)
        with ThreadPoolExecutor(max_workers=1) as thread:
            running = thread.submit(lambda: list(self.answers([prepared])))
            running.add_done_callback(lambda _: pieces.put(None))
            try:
                while (piece := pieces.get()) is not None:
                    yield piece
            finally:
                closed.set()
            ((_, (answer,)),) = running.result()
        return answer

    def measure(self, views: Mapping[str, ImageInput], **options: Any) -> ModelAnswer:
        """Return the measures of a model with `part='vision'`.

        Args:
            views: Image of each view, such as `{"ED": {"path": "a.avi", "frames": 46}, "ES": "es.png"}`.
            options: Options of the readers of images.
        """
        _, reader = split_options(options)
        ((answer,),) = self.answer_all([Request(views_of(views, reader))])
        return answer

    def answer_all(self, requests: Iterable[Request]) -> Iterator[list[ModelAnswer]]:
        """Yield the answers to each request, in order; a few batches are in memory at a time.

        Raises:
            UserError: A request cannot be used.
        """
        remaining = iter(requests)
        while window := [self.prepare(request) for request in islice(remaining, self.window)]:
            answered = dict(self.answers(window))
            yield from (answered[index] for index in range(len(window)))

    def prepare(self, request: Request) -> Prepared:
        """Encode the prompt of a request.

        Raises:
            ConfigError: The request names an unknown model.
            DataError: The conversation cannot be encoded, or is longer than the model reads.
        """
        name = self.names[0] if request.model is None else request.model
        if not self.model.generates_text:
            _refuse_question(request)
        prompt = self.variant(name).encoder.prompt(request.sample)
        source, length = request.sample.source or "the question", len(prompt)
        if prompt.truncated:
            raise DataError.at(source, "it is longer than the model's max_length: shorten it")
        if length >= self.context_length:
            raise DataError.at(
                source, f"it has {length} tokens, and the model reads {self.context_length} with the answer: shorten it"
            )
        return Prepared(request, name, prompt)

    def answers(self, prepared: Sequence[Prepared]) -> Iterator[tuple[int, list[ModelAnswer]]]:
        """Yield the answers to prepared requests as soon as they are complete: index of the request, its answers.

        Requests of one model are computed together, in batches of similar length. An answer does not depend on the
        other requests.
        """
        by_model: dict[str, list[int]] = {}
        for index, one in enumerate(prepared):
            by_model.setdefault(one.model, []).append(index)
        for name, indices in by_model.items():
            with self.variant(name).chosen(self.model) as bundle:
                compute = self._texts if self.model.generates_text else self._measures
                for index, answers in compute(bundle, {index: prepared[index] for index in indices}):
                    yield index, answers

    def _texts(self, bundle: Bundle, prepared: Mapping[int, Prepared]) -> Iterator[tuple[int, list[ModelAnswer]]]:
        """Yield the generated answers to requests of one model."""
        jobs = [(index, which) for index, one in prepared.items() for which in range(one.request.n)]
        answered: dict[int, dict[int, ModelAnswer]] = {index: {} for index in prepared}
        for start in range(0, len(jobs), self.window):
            window = jobs[start : start + self.window]
            texts = {number: self._text(prepared[index], which) for number, (index, which) in enumerate(window)}
            generation = RequestedGeneration.for_texts(bundle, texts, self.batch_size)
            prompts = [prepared[index].prompt for index, _ in window]
            for batch in generation.batches(prompts, range(len(window))):
                for number, answer in batch.items():
                    index, which = window[number]
                    answered[index][which] = _with_details(answer, prepared[index], texts[number])
                    if len(answered[index]) == prepared[index].request.n:
                        found = answered.pop(index)
                        yield index, [found[key] for key in sorted(found)]

    def _text(self, prepared: Prepared, which: int) -> GeneratedText:
        """Return the text of one answer to a request, which is not generated yet."""
        request, room = prepared.request, self.context_length - len(prepared.prompt)
        options = replace(request.options, max_new_tokens=min(request.options.max_new_tokens, room))
        on_text = request.on_text
        send = None if on_text is None else lambda piece: on_text(which, piece)
        return GeneratedText(options, request.number + which, send, request.is_cancelled)

    def _measures(self, bundle: Bundle, prepared: Mapping[int, Prepared]) -> Iterator[tuple[int, list[ModelAnswer]]]:
        """Yield the predicted measures of requests."""
        indices = list(prepared)
        for start in range(0, len(indices), self.batch_size):
            part = indices[start : start + self.batch_size]
            answers = measure_batch(bundle, [prepared[index].prompt for index in part])
            for index, answer in zip(part, answers, strict=True):
                request = prepared[index].request
                if request.on_text is not None:
                    request.on_text(0, answer.text)
                yield index, [_with_details(answer, prepared[index], GeneratedText(request.options))]


def _refuse_question(request: Request) -> None:
    """Raise `DataError` for a request that a model of measures would answer as if it had asked nothing."""
    if any(turn.text.replace(IMAGE, "").strip() for turn in request.sample.turns):
        raise DataError("this model predicts measures of images and answers no questions: leave the text out")
    if request.n > 1 or request.options.top_logprobs is not None:
        raise DataError("this model predicts measures, which are equal each time: leave n and logprobs out")


def _with_details(answer: Answer, prepared: Prepared, text: GeneratedText) -> ModelAnswer:
    """Return an answer with its question and its tokens."""
    return ModelAnswer(
        **vars(answer),
        question=prepared.request.sample,
        model=prepared.model,
        end=text.end or "stop",
        prompt_tokens=len(prepared.prompt),
        probabilities=tuple(text.probabilities),
    )
