"""Process of the page: the server with the page beside its other addresses."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.from_thread

from mllm.errors import ConfigError, DataError
from mllm.predict.inputs import asked_sample, split_options
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

    from mllm.predict.loaded_model import LoadedModel
    from mllm.predict.model_answer import ModelAnswer

logger = logging.getLogger(__name__)
SESSIONS = "sessions"
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

    def ask(
        self,
        images: Any,
        question: str,
        *,
        after: ModelAnswer | None,
        model: str,
        modality: str | None = None,
        **options: Any,
    ) -> ModelAnswer:
        """Return the answer of a model, in a thread of the server; the arguments are those of `LoadedModel.ask`.

        Raises:
            DataError: The question cannot be answered.
        """
        limits = self._service.limits
        chosen, _ = split_options(options)
        sample = asked_sample(images, question, {}, modality, after)
        pixels = sum(image.width * image.height for image in sample.images)
        if pixels > limits.pixels:
            raise DataError(
                f"the pictures of this conversation have {pixels:,} pixels, and the limit of this server is "
                f"{limits.pixels:,}: begin a new conversation, or drop a smaller picture"
            )
        request = Request(sample, replace(chosen, max_new_tokens=min(chosen.max_new_tokens, limits.tokens)), model)
        try:
            (answer,) = anyio.from_thread.run(self._service.batcher.answer, request)
        except RequestError as error:
            raise DataError(str(error)) from error
        if self._service.keeper is not None:
            message = {"role": "user", "content": question}
            self._service.keeper.write({"model": model, "messages": [message]}, [answer])
        return answer


def serve_page(options: ServeOptions, corrections: str, folder: Path) -> None:
    """Serve the page until the process is interrupted.

    Args:
        options: Options of the server.
        corrections: Folder of the corrections.
        folder: Folder of dropped files.

    Raises:
        ConfigError: The port is in use, the host needs a token, a model cannot be loaded, or it answers no questions.
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

    Raises:
        ConfigError: The model answers no questions.
    """
    service: Service = app.state.service
    if not service.model.model.generates_text:
        raise ConfigError("the model predicts measures of views, and the page asks questions: use mllm predict --video")
    variants = service.model.variants.items()
    needs_image = frozenset(name for name, variant in variants if images_of_training(variant.args))
    events = Events(QueuedModel(service), needs_image, Sessions(folder / SESSIONS), corrections, REPORT, service.limits)
    add_page(app, events, token)
    return app
