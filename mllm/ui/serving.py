"""Process of the page: the server with the page beside its other addresses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.from_thread

from mllm.dataset.readers.pixel_limit import counted_pixels
from mllm.errors import DataError
from mllm.predict.inputs import asked_sample, split_options, views_of
from mllm.predict.model_answer import ModelAnswer
from mllm.predict.predict import images_of_training
from mllm.predict.request import Request
from mllm.serve.app import Service, build_app
from mllm.serve.keeping import Keeper
from mllm.serve.limits import Limits, RequestError
from mllm.serve.server import ServeOptions, serve
from mllm.ui.corrections import Corrections
from mllm.ui.events import Events
from mllm.ui.host import PAGE, REPORT, add_page
from mllm.ui.session import Sessions

if TYPE_CHECKING:
    from fastapi import FastAPI
    from PIL.Image import Image

    from mllm.predict.loaded_model import LoadedModel
    from mllm.serve.batching import Event, Job
    from mllm.structures import Sample

logger = logging.getLogger(__name__)
SESSIONS = "sessions"
WAIT = 0.2
"""Seconds after which a page that waits for an answer looks whether it was stopped."""
PATIENCE = 5
"""Seconds that connections have at the end: those of open pages never end by themselves."""


class QueuedModel:
    """Questions of pages in the queue of the server, beside the requests of other clients."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def names(self) -> list[str]:
        """Return the names of the models."""
        return self._service.model.names

    def stream(
        self,
        images: Any,
        question: str,
        *,
        after: ModelAnswer | None,
        model: str,
        is_cancelled: Callable[[], bool],
        modality: str | None = None,
        **options: Any,
    ) -> Generator[str, None, ModelAnswer]:
        """Yield the pieces of an answer, and return it, in threads of the server; see `LoadedModel.stream`.

        The question is in the queue when the generator is returned.

        Raises:
            DataError: The question cannot be answered.
        """
        limits, batcher = self._service.limits, self._service.batcher
        chosen, _ = split_options(options)
        sample = asked_sample(images, question, {}, modality, after)
        self._check_pixels(sample)
        request = Request(sample, replace(chosen, max_new_tokens=min(chosen.max_new_tokens, limits.tokens)), model)
        try:
            job = anyio.from_thread.run_sync(batcher.enter, request)
        except RequestError as error:
            raise DataError(str(error)) from error
        stream = self._answered(job, question, is_cancelled)
        next(stream)  # a generator that has not begun would not leave the queue when it is closed
        return stream

    def _answered(self, job: Job, question: str, is_cancelled: Callable[[], bool]) -> Generator[str, None, ModelAnswer]:
        """Yield an empty piece and the pieces of an answer, and return it."""
        model = str(job.request.model)
        try:
            yield ""
            answer = yield from _pieces(job, is_cancelled)
        finally:
            job.cancelled.set()
            job.loop.call_soon_threadsafe(self._service.batcher.leave)  # a generator may be closed in any thread
        if answer is None:
            return ModelAnswer("", question=job.request.sample, model=model, end="cancelled")
        self._keep(model, question, answer)
        return answer

    def measure(self, views: Mapping[str, Image]) -> ModelAnswer:
        """Return the measures of images, in a thread of the server; see `LoadedModel.measure`.

        Raises:
            DataError: The images cannot be measured.
        """
        sample = views_of(views, {})
        self._check_pixels(sample)
        try:
            (answer,) = anyio.from_thread.run(self._service.batcher.answer, Request(sample))
        except RequestError as error:
            raise DataError(str(error)) from error
        self._keep(self.names[0], "", answer)
        return answer

    def _check_pixels(self, sample: Sample) -> None:
        """Raise `DataError` if the images have more pixels than a request to the server may have."""
        limit = self._service.limits.pixels
        pixels = sum(counted_pixels(image.width, image.height) for image in sample.images)
        if pixels > limit:
            raise DataError(
                f"the pictures of this conversation have {pixels:,} pixels, and the limit of this server is "
                f"{limit:,}: begin a new conversation, or drop a smaller picture"
            )

    def _keep(self, model: str, question: str, answer: ModelAnswer) -> None:
        """Write a question and its answer to the file of `--keep`."""
        if self._service.keeper is not None:
            message = {"role": "user", "content": question}
            self._service.keeper.write({"model": model, "messages": [message]}, [answer])


def _pieces(job: Job, is_cancelled: Callable[[], bool]) -> Generator[str, None, ModelAnswer | None]:
    """Yield the pieces of an answer and return it; None if it was cancelled before its first piece."""
    has_begun = False
    while True:
        event = anyio.from_thread.run(_next_event, job)
        if is_cancelled():
            job.cancelled.set()
            if not has_begun:
                return None  # it may wait long for the requests before it
        if event is None:
            continue
        if event[0] == "piece":
            has_begun = True
            yield event[1][1]
        elif event[0] == "error":
            raise DataError(str(event[1]))
        elif event[0] == "answers":
            return event[1][0]


async def _next_event(job: Job) -> Event | None:
    """Return the next event of a request; None if there is none for some time."""
    try:
        return await asyncio.wait_for(job.events.get(), WAIT)
    except asyncio.TimeoutError:
        return None


def serve_page(options: ServeOptions, corrections: str, folder: Path) -> None:
    """Serve the page until the process is interrupted.

    Args:
        options: Options of the server.
        corrections: Folder of the corrections.
        folder: Folder of dropped files.

    Raises:
        ConfigError: The port is in use, the host needs a token, or a model cannot be loaded.
    """

    def build(model: LoadedModel, limits: Limits, token: str | None, keeper: Keeper | None) -> FastAPI:
        app = build_page(build_app(model, limits, token, keeper), Corrections(corrections), folder, token)
        host = f"[{options.host}]" if ":" in options.host else options.host
        port = options.port or "PORT"  # a free one, which the server names when it has started
        secret = "/?token=TOKEN" if token else ""
        logger.info("open http://%s:%s%s%s in a browser", host, port, PAGE, secret)
        return app

    serve(replace(options, patience=PATIENCE), build)


def build_page(app: FastAPI, corrections: Corrections, folder: Path, token: str | None = None) -> FastAPI:
    """Add the page to the application of a server, and return it.

    Args:
        app: Application of `build_app`.
        corrections: Folder of the corrections.
        folder: Folder of dropped files.
        token: Token of the server.
    """
    service: Service = app.state.service
    variants = service.model.variants
    needs_image = frozenset(name for name, variant in variants.items() if images_of_training(variant.args))
    model = QueuedModel(service)
    views = next(iter(variants.values())).encoder.views
    events = Events(model, needs_image, Sessions(folder / SESSIONS), corrections, REPORT, service.limits, views)
    add_page(app, events, token)
    return app
