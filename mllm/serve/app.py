"""HTTP application of the server: models, chat completions, health and figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mllm.errors import hint
from mllm.predict.loaded_model import LoadedModel
from mllm.predict.model_answer import ModelAnswer
from mllm.serve.batching import Batcher, Job
from mllm.serve.guard import Guard, error_body
from mllm.serve.keeping import Keeper
from mllm.serve.limits import Limits, RequestError
from mllm.serve.metrics import Metrics
from mllm.serve.reading import parse_json, read_body
from mllm.serve.replies import Reply, event
from mllm.serve.schema import ChatRequest, parse_chat

READERS = 2
"""Number of threads that decode images."""
LEFT = 499
"""Status in the figures of a request whose client left before the answer."""


@dataclass
class Service:
    """State of the application."""

    model: LoadedModel
    limits: Limits
    keeper: Keeper | None = None
    metrics: Metrics = field(default_factory=Metrics)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.model, self.metrics, self.limits.queue)
        self.threads = anyio.CapacityLimiter(READERS)


def build_app(
    model: LoadedModel, limits: Limits | None = None, token: str | None = None, keeper: Keeper | None = None
) -> FastAPI:
    """Return the application that answers questions to a model.

    Other parts, such as a page, add their routes to it; `app.state.service.batcher.answer` answers their questions in
    the batches of all requests.

    Args:
        model: The model, which belongs to the application from now on.
        limits: Limits of requests.
        token: Token that requests need; None: requests to the names of this machine need none.
        keeper: File of requests and answers; None: nothing is stored.
    """
    service = Service(model, limits or Limits(), keeper)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await service.batcher.close()

    # Its pages of documentation load scripts from the internet.
    app = FastAPI(title="mllm", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.add_middleware(Guard, token=token)
    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(Exception, _fail)
    app.add_route("/v1/chat/completions", partial(_chat, service), methods=["POST"])
    app.add_route("/v1/models", partial(_models, service), methods=["GET"])
    app.add_route("/v1/models/{name:path}", partial(_model, service), methods=["GET"])
    app.add_route("/health", partial(_health, service), methods=["GET"])
    app.add_route("/metrics", partial(_figures, service), methods=["GET"])
    return app


async def _models(service: Service, _: HttpRequest) -> JSONResponse:
    entries = [_entry(service, name) for name in service.model.names]
    return JSONResponse({"object": "list", "data": entries})


async def _model(service: Service, request: HttpRequest) -> JSONResponse:
    name = request.path_params["name"]
    if name not in service.model.names:
        raise RequestError(f"there is no model '{name}'{hint(name, service.model.names)}", 404)
    return JSONResponse(_entry(service, name))


def _entry(service: Service, name: str) -> dict[str, Any]:
    """Return a model in OpenAI's form."""
    return {"id": name, "object": "model", "created": service.created, "owned_by": "mllm"}


async def _health(service: Service, _: HttpRequest) -> JSONResponse:
    return JSONResponse({"status": "ok"})


async def _figures(service: Service, _: HttpRequest) -> PlainTextResponse:
    text = service.metrics.text(service.batcher.open)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


async def _refuse(_: HttpRequest, error: Exception) -> JSONResponse:
    """Return the response to a refused request."""
    if isinstance(error, RequestError):
        status, message = error.status, str(error)
    else:
        assert isinstance(error, HTTPException)
        status, message = error.status_code, f"{error.detail}: this server has /v1/chat/completions and /v1/models"
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(error_body(status, message), status, headers)


async def _fail(_: HttpRequest, error: Exception) -> JSONResponse:
    """Return the response to a request that failed for a reason in this program."""
    return JSONResponse(error_body(500, f"the server failed ({type(error).__name__})"), 500)


async def _chat(service: Service, request: HttpRequest) -> Response:
    """Answer a chat completion."""
    started = time.monotonic()
    status = 500
    is_streaming = False
    try:
        service.batcher.admit()
    except RequestError as error:
        service.metrics.requests[error.status] += 1
        raise
    try:
        text, uploads = await read_body(request, service.limits)
        parse = partial(_parse, service, text, uploads)
        chat = await anyio.to_thread.run_sync(parse, limiter=service.threads)
        job = service.batcher.submit(chat.request, chat.streams)
        if chat.streams:
            await _started(job)
            is_streaming = True
            return StreamingResponse(_events(service, chat, job, started), media_type="text/event-stream")
        answers = await _answers(request, job)
        status = LEFT if answers is None else 200
        if answers is None:
            return Response(status_code=LEFT)
        service.metrics.seconds.add(time.monotonic() - started)
        _keep(service, chat, answers)
        return JSONResponse(Reply(answers[0].model, chat.with_logprobs).whole(answers))
    except RequestError as error:
        status = error.status
        raise
    except ClientDisconnect:
        status = LEFT
        return Response(status_code=LEFT)
    finally:
        if not is_streaming:
            service.metrics.requests[status] += 1
            service.batcher.leave()


def _parse(service: Service, text: bytes, uploads: dict[str, bytes]) -> ChatRequest:
    return parse_chat(parse_json(text), uploads, service.model.names, service.limits)


async def _started(job: Job) -> None:
    """Wait until the prompt of a job is encoded. Raise the `RequestError` of a prompt that cannot be used."""
    try:
        kind = await job.events.get()
    except asyncio.CancelledError:
        job.cancelled.set()
        raise
    if kind[0] == "error":
        raise kind[1]


async def _answers(request: HttpRequest, job: Job) -> list[ModelAnswer] | None:
    """Return the answers to a job; None if the client left, which cancels it."""
    leaving = asyncio.create_task(_left(request))
    try:
        while True:
            waiting = asyncio.create_task(job.events.get())
            await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                return None
            kind = waiting.result()
            if kind[0] == "answers":
                return kind[1]
            if kind[0] == "error":
                raise kind[1]
    finally:
        job.cancelled.set()
        leaving.cancel()


async def _left(request: HttpRequest) -> None:
    """Return when the client of a request, whose body was read, has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(service: Service, chat: ChatRequest, job: Job, started: float) -> AsyncIterator[str]:
    """Yield the chunks of a streamed answer. The generator is closed if the client leaves, which cancels the job."""
    status = LEFT
    reply = Reply(str(chat.request.model), chat.with_logprobs)
    try:
        for index in range(chat.request.n):
            yield event(reply.opening(index))
        while True:
            kind = await job.events.get()
            if kind[0] == "piece":
                yield event(reply.piece(*kind[1]))
            elif kind[0] == "error":
                status = kind[1].status
                yield event(error_body(status, str(kind[1])))
                return
            elif kind[0] == "answers":
                break
        answers = kind[1]
        for index, answer in enumerate(answers):
            yield event(reply.closing(index, answer))
        if chat.with_usage:
            yield event(reply.usage(answers))
        yield "data: [DONE]\n\n"
        status = 200
        service.metrics.seconds.add(time.monotonic() - started)
        _keep(service, chat, answers)
    finally:
        job.cancelled.set()
        service.metrics.requests[status] += 1
        service.batcher.leave()


def _keep(service: Service, chat: ChatRequest, answers: list[ModelAnswer]) -> None:
    if service.keeper is not None:
        service.keeper.write(chat.kept, answers)
