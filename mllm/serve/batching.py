"""Queue of requests, and the thread that owns the model and answers them in batches."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeAlias

from mllm.engine.micro_batches import release_memory
from mllm.errors import UserError, is_out_of_memory, origin_of
from mllm.predict.loaded_model import LoadedModel
from mllm.predict.model_answer import ModelAnswer
from mllm.predict.request import Prepared, Request
from mllm.serve.limits import RequestError
from mllm.serve.metrics import Metrics

logger = logging.getLogger(__name__)

Event: TypeAlias = (
    tuple[Literal["started"], int]
    | tuple[Literal["piece"], tuple[int, str]]
    | tuple[Literal["answers"], list[ModelAnswer]]
    | tuple[Literal["error"], RequestError]
)
"""Progress of a request: its prompt is encoded (with the number of its tokens), a piece of text, the end."""


@dataclass(eq=False)
class Job:
    """A request in the queue. Its events are read in the event loop, and come from the thread of the model."""

    request: Request
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    prepared: Prepared | None = None
    is_done: bool = False
    has_sent: bool = False
    """A piece of text was sent, so that the request cannot be answered again."""

    def send(self, event: Event) -> None:
        """Add an event, in the thread of the model."""
        self.has_sent |= event[0] == "piece"
        self.is_done |= event[0] in ("answers", "error")
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    @property
    def rows(self) -> int:
        """Return the number of its answers."""
        return self.request.n


class Batcher:
    """Queue in front of one model.

    The request that waits longest determines the next batch: requests of the same adapter join it, first those about
    the same images, whose tokens are computed once, then those of similar length, which need least padding.

    Args:
        model: The model, which only the thread of this object uses from now on.
        metrics: Figures of the server.
        limit: Maximum number of requests that wait or are answered.
    """

    def __init__(self, model: LoadedModel, metrics: Metrics, limit: int) -> None:
        self.model, self.metrics, self.limit = model, metrics, limit
        self.open = 0
        """Number of requests that were admitted and have not ended."""
        self._new: deque[Job] = deque()
        self._ready: list[Job] = []
        """Encoded requests in the order of their arrival; only the thread of the model uses it."""
        self._batch: list[Job] = []
        self._arrived = asyncio.Event()
        self._closing = False
        self._thread: Executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to answer requests, in a running event loop."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Answer all requests, and end the thread."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    def admit(self) -> None:
        """Count a request that arrives; `leave` ends it. Raise `RequestError` if the queue is full."""
        if self._closing:
            raise RequestError("the server is stopping: send the request to another one", 503)
        if self.open >= self.limit:
            raise RequestError(f"the server has {self.open} requests, which is its limit: send it again later", 429)
        self.open += 1

    def leave(self) -> None:
        """End a request that was admitted."""
        self.open -= 1

    def submit(self, request: Request, streams: bool = False) -> Job:
        """Add a request to the queue. With `streams` its events have pieces of text."""
        job = Job(request, asyncio.get_running_loop())
        on_text: Callable[[int, str], None] | None = None
        if streams:

            def on_text(which: int, piece: str) -> None:
                job.send(("piece", (which, piece)))

        job.request = replace(request, on_text=on_text, is_cancelled=job.cancelled.is_set)
        self._new.append(job)
        self._arrived.set()
        return job

    def enter(self, request: Request) -> Job:
        """Admit a request of another user of the model in this process, such as a page, and add it to the queue.

        `leave` ends it. Raise `RequestError` if the queue is full.
        """
        self.admit()
        return self.submit(request, streams=True)

    async def answer(self, request: Request) -> list[ModelAnswer]:
        """Return the answers to a request, for other users of the model in this process, such as a page.

        Raises:
            RequestError: The request cannot be answered.
        """
        self.admit()
        job = self.submit(request)
        try:
            while True:
                event = await job.events.get()
                if event[0] == "answers":
                    return event[1]
                if event[0] == "error":
                    raise event[1]
        finally:
            job.cancelled.set()
            self.leave()

    async def _work(self) -> None:
        """Answer batch after batch until the queue is closed and empty."""
        while True:
            if not self._new and not self._ready:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            error = await self._error_of(self._round)
            if error is not None:
                await self._recover(error)

    async def _recover(self, error: RequestError) -> None:
        """Answer the requests of a failed batch one by one, since one of them may be the cause, such as its size."""
        unfinished = [job for job in self._batch if not job.is_done]
        alone = len(self._batch) == 1
        for job in unfinished:
            failure: RequestError | None = error
            if not alone and not job.has_sent:
                failure = await self._error_of(partial(self._answer, [job]))
            if failure is not None:
                job.send(("error", failure))

    async def _error_of(self, function: Callable[[], None]) -> RequestError | None:
        """Call a function in the thread of the model. Return its error, which does not keep the memory of the call.

        The traceback of an exception refers to all values of the call, and ends here, before the next attempt.
        """
        loop = asyncio.get_running_loop()
        attempt = loop.run_in_executor(self._thread, function)
        await asyncio.wait([attempt])
        error = attempt.exception()
        if error is None:
            return None
        failure = _failure(error)
        traceback.clear_frames(error.__traceback__)
        del error, attempt
        await loop.run_in_executor(self._thread, release_memory)
        return failure

    def _round(self) -> None:
        """Encode new requests, and answer one batch, in the thread of the model."""
        while self._new and len(self._ready) < self.model.window:
            self._batch = [self._new.popleft()]
            self._prepare(self._batch[0])
        self._batch = self._next_batch()
        if self._batch:
            self._answer(self._batch)

    def _prepare(self, job: Job) -> None:
        """Encode the prompt of a request."""
        if job.cancelled.is_set():
            job.is_done = True
            return
        try:
            job.prepared = self.model.prepare(job.request)
        except UserError as error:
            job.send(("error", RequestError(str(error))))
            return
        job.send(("started", len(job.prepared.prompt)))
        self._ready.append(job)

    def _next_batch(self) -> list[Job]:
        """Take the requests of the next batch from those that are encoded."""
        waiting = [job for job in self._ready if not job.cancelled.is_set()]
        if not waiting:
            self._ready = []
            return []
        first = waiting[0].prepared
        assert first is not None

        def distance(job: Job) -> tuple[bool, int]:
            assert job.prepared is not None
            key = job.prepared.prompt.image_key
            return key is None or key != first.prompt.image_key, abs(len(job.prepared.prompt) - len(first.prompt))

        others = [job for job in waiting[1:] if job.prepared is not None and job.prepared.model == first.model]
        batch, rows = [waiting[0]], waiting[0].rows
        for job in sorted(others, key=distance):
            if rows + job.rows > self.model.batch_size:
                break
            batch.append(job)
            rows += job.rows
        self._ready = [job for job in waiting if job not in batch]
        return batch

    def _answer(self, batch: Sequence[Job]) -> None:
        """Answer a batch of encoded requests, in the thread of the model."""
        self.metrics.batches.add(sum(job.rows for job in batch))
        prepared = [job.prepared for job in batch if job.prepared is not None]
        for index, answers in self.model.answers(prepared):
            self.metrics.prompt_tokens += answers[0].prompt_tokens
            self.metrics.generated_tokens += sum(answer.tokens for answer in answers)
            batch[index].send(("answers", answers))


def _failure(error: BaseException) -> RequestError:
    """Return the error of requests that failed for a reason in this program, and log it without values."""
    if isinstance(error, UserError):
        return RequestError(str(error))
    if is_out_of_memory(error):
        return RequestError("the server has not enough memory for this request: send smaller or fewer images", 503)
    logger.error("a request failed: %s in %s", type(error).__name__, origin_of(error))
    return RequestError(f"the server failed ({type(error).__name__}); the request was not answered", 500)
