"""The application in this process: tokens, the file of requests, and requests that fail for a reason in the program."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mllm import load
from mllm.errors import ConfigError
from mllm.models.generation.options import GenerationOptions
from mllm.predict.loaded_model import LoadedModel
from mllm.predict.request import Prepared, Request
from mllm.serve.app import build_app
from mllm.serve.batching import Batcher
from mllm.serve.keeping import Keeper
from mllm.serve.limits import Limits, RequestError
from mllm.serve.metrics import Metrics
from mllm.serve.replies import extra_fields
from mllm.serve.server import bound_socket, run
from mllm.structures import Mark, Sample, Turn

QUESTION = {"model": "gemma3n", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def model(generating_text_model: Path) -> LoadedModel:
    """A tiny model of text, with batches of four."""
    return load(model=generating_text_model)


def sent(
    model: LoadedModel, *requests: dict[str, Any], token: str | None = None, keeper: Keeper | None = None
) -> list[httpx.Response]:
    """Return the responses of the application to requests that are sent at the same time."""

    async def run() -> list[httpx.Response]:
        app = build_app(model, Limits(seconds=0.5), token, keeper)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            tasks = [client.request(**{"method": "POST", "url": "/v1/chat/completions", **one}) for one in requests]
            return await asyncio.gather(*tasks)

    return asyncio.run(run())


def batched(model: LoadedModel, run: Callable[[Batcher], Coroutine[Any, Any, Any]]) -> Any:
    """Return the result of a function that uses a queue of a model."""

    async def start() -> Any:
        batcher = Batcher(model, Metrics(), 100)
        batcher.start()
        result = await run(batcher)
        await batcher.close()
        return result

    return asyncio.run(start())


def asking(text: str, n: int = 1) -> Request:
    return Request(Sample([Turn("user", text)]), GenerationOptions(max_new_tokens=3), n=n)


def test_a_server_with_a_token_answers_only_those_who_have_it(model: LoadedModel) -> None:
    def headers(value: str) -> dict[str, str]:
        return {"authorization": value, "host": "machine.example"}

    responses = sent(
        model,
        {"json": QUESTION},
        {"json": QUESTION, "headers": headers("Bearer wrong")},
        {"json": QUESTION, "headers": headers("Basic secret")},
        {"method": "GET", "url": "/v1/models"},
        {"method": "GET", "url": "/metrics"},
        {"method": "GET", "url": "/health"},
        {"json": QUESTION, "headers": headers("Bearer secret")},
        token="secret",
    )
    assert [response.status_code for response in responses] == [401] * 5 + [200] * 2
    assert responses[0].json()["error"]["message"].startswith("the token is missing or wrong")


def test_texts_are_kept_only_in_the_file_that_was_asked_for(model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    (response,) = sent(model, {"json": QUESTION}, keeper=Keeper(path))
    (row,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert row["request"]["messages"] == [{"role": "user", "content": "Why?"}] and row["request"]["max_tokens"] == 4
    assert row["answers"][0]["text"] == response.json()["choices"][0]["message"]["content"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match=r"--keep .*absent/kept\.jsonl cannot be written: No such file"):
        Keeper(tmp_path / "absent" / "kept.jsonl")


def test_a_file_that_others_could_read_is_closed_and_a_full_disk_loses_no_answer(
    model: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kept.jsonl"
    path.touch(0o644)
    Keeper(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    requests = [{"json": QUESTION}, {"json": {**QUESTION, "stream": True}}]
    responses = sent(model, *requests, keeper=Keeper("/dev/full"))
    assert [response.status_code for response in responses] == [200, 200]
    assert responses[1].text.endswith("data: [DONE]\n\n")
    assert caplog.text.count("could not be written to the file of --keep: No space left on device") == 2
    assert "Why?" not in caplog.text


@pytest.mark.parametrize(
    "origin, status",
    [
        *((f"http://{host}", 200) for host in ("localhost:7860", "127.0.0.1:8000", "[::1]")),
        *((origin, 403) for origin in ("https://evil.example", "http://localhost.evil.example:80", "null", "")),
    ],
)
def test_a_server_without_a_token_answers_no_page_of_another_machine(
    model: LoadedModel, origin: str, status: int
) -> None:
    """Browsers send a multipart request of any page without asking the server first."""
    files = {"request": (None, json.dumps(QUESTION))}
    (response,) = sent(model, {"files": files, "headers": {"origin": origin}})
    assert response.status_code == status, response.text
    (response,) = sent(model, {"json": QUESTION, "headers": {"origin": origin, "authorization": "Bearer t"}}, token="t")
    assert response.status_code == 200


@pytest.mark.parametrize("value", [["user"], {"user": 1}, 3, None, True])
@pytest.mark.parametrize("place", ["role", "model", "type", "filename", "window", "axis", "page", "stop"])
def test_values_of_any_type_are_refused_with_a_sentence(model: LoadedModel, place: str, value: Any) -> None:
    image = {"type": "file", "file": {"filename": "a.png", "file_data": "QUJD"}}
    message: dict[str, Any] = {"role": "user", "content": [image, {"type": "text", "text": "Why?"}]}
    request: dict[str, Any] = {**QUESTION, "messages": [message]}
    targets = {"role": message, "model": request, "stop": request, "type": image}
    targets.get(place, image["file"])[place] = value
    (response,) = sent(model, {"json": request})
    error = response.json()["error"]
    assert 400 <= response.status_code < 500 and len(error["message"].split()) > 4, response.text


def test_a_request_that_arrives_too_slowly_is_refused(model: LoadedModel) -> None:
    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(5)

    (response,) = sent(model, {"content": slow(), "headers": {"content-type": "application/json"}})
    assert response.status_code == 408 and "within 0.5 seconds" in response.text


def test_a_failure_of_one_request_is_not_one_of_the_others(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch that fails as a whole is answered one by one; the log has no text of a request."""
    real = LoadedModel.answers

    def answers(self: LoadedModel, prepared: Sequence[Prepared]) -> Iterator[Any]:
        for one in prepared:
            text = one.request.sample.turns[-1].text
            if text == "memory":
                raise MemoryError
            if text == "defect":
                raise RuntimeError(f"about {text}")
        return real(self, prepared)

    monkeypatch.setattr(LoadedModel, "answers", answers)

    async def run(batcher: Batcher) -> list[Any]:
        texts = ["Why?", "memory", "What?", "defect", "Where?"]
        return await asyncio.gather(*(batcher.answer(asking(text)) for text in texts), return_exceptions=True)

    good, memory, other, defect, last = batched(model, run)
    assert [answers[0].text for answers in (good, other, last)] == [
        model.ask(None, text, max_new_tokens=3).text for text in ("Why?", "What?", "Where?")
    ]
    assert (memory.status, defect.status) == (503, 500)
    assert "not enough memory" in str(memory) and str(defect).startswith("the server failed (RuntimeError)")
    assert "a request failed: RuntimeError in " in caplog.text and "about defect" not in caplog.text


def test_the_memory_of_a_failed_batch_is_free_in_the_next_attempts(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Features:
        """Object that the failed batch holds, with a cycle as those of modules with hooks."""

        def __init__(self) -> None:
            self.own = self

    kept: list[weakref.ref[Features]] = []
    alive: list[int] = []
    real = LoadedModel.answers

    def answers(self: LoadedModel, prepared: Sequence[Prepared]) -> Iterator[Any]:
        alive.append(sum(one() is not None for one in kept))
        features = Features()
        kept.append(weakref.ref(features))
        texts = [one.request.sample.turns[-1].text for one in prepared]
        if len(prepared) > 1 or "memory" in texts:
            raise MemoryError(features)
        yield from real(self, prepared)

    monkeypatch.setattr(LoadedModel, "answers", answers)

    async def run(batcher: Batcher) -> list[Any]:
        texts = ["memory", "Why?", "memory", "What?"]
        return await asyncio.gather(*(batcher.answer(asking(text)) for text in texts), return_exceptions=True)

    first, why, second, what = batched(model, run)
    assert (first.status, second.status) == (503, 503) and len(why) == len(what) == 1
    assert alive[0] == 0 and not any(alive[:3]), "the tensors of the failed batch are alive in the next attempt"
    assert len(alive) == 5 and alive[4] <= 1, "a batch that succeeded may wait for the collector of cycles"


def test_a_batch_has_requests_of_similar_length_and_the_oldest_one(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[str]] = []
    real = LoadedModel.answers

    def answers(self: LoadedModel, prepared: Sequence[Prepared]) -> Iterator[Any]:
        batches.append([one.request.sample.turns[-1].text for one in prepared])
        return real(self, prepared)

    monkeypatch.setattr(LoadedModel, "answers", answers)
    long = [
        "Is the heart of this patient as large as usual, or is it larger " + "and larger " * number
        for number in range(3)
    ]
    short = ["Why?", "Where?", "What?", "How?"]
    texts = [text for pair in zip(long, short, strict=False) for text in pair] + short[3:]

    async def run(batcher: Batcher) -> None:
        pair = batcher.answer(asking("Why is the heart normal?", n=3))
        await asyncio.gather(*(batcher.answer(asking(text)) for text in texts), pair)

    batched(model, run)
    assert batches[0][0] == long[0] and set(long) <= set(batches[0]), "lengths near the oldest request come first"
    assert set(batches[1]) == set(short) - set(batches[0])
    assert sorted(text for batch in batches for text in batch) == sorted([*texts, "Why is the heart normal?"])


def test_a_full_queue_and_a_closing_one_admit_nothing(model: LoadedModel) -> None:
    async def run() -> None:
        batcher = Batcher(model, Metrics(), 1)
        batcher.start()
        batcher.admit()
        with pytest.raises(RequestError, match="has 1 requests, which is its limit"):
            await batcher.answer(asking("Why?"))
        batcher.leave()
        await batcher.close()
        with pytest.raises(RequestError, match="the server is stopping"):
            batcher.admit()

    asyncio.run(run())


def test_masks_boxes_and_measures_are_fields_of_the_message(model: LoadedModel) -> None:
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    answer = model.ask(None, "Why?", max_new_tokens=1)
    marked = type(answer)(
        "Here.", marks=(Mark(box=(1.0, 2.0, 3.0, 4.04), mask=mask),), measures={"EF": 58.4, "ESV": float("nan")}
    )
    fields = extra_fields(marked)
    assert fields["boxes"] == [[1.0, 2.0, 3.0, 4.0]] and fields["masks"][0]["size"] == [4, 6]
    assert fields["measures"] == {"EF": 58.4, "ESV": None}
    json.dumps(fields, allow_nan=False)


def test_figures_have_the_format_of_prometheus() -> None:
    metrics = Metrics()
    metrics.requests[200] += 2
    for seconds in (0.05, 0.1, 3.0, 1000.0):
        metrics.seconds.add(seconds)
    lines = metrics.text(waiting=3).splitlines()
    assert 'mllm_requests_total{status="200"} 2' in lines and "mllm_open_requests 3" in lines
    assert 'mllm_request_seconds_bucket{le="0.1"} 2' in lines and 'mllm_request_seconds_bucket{le="5.0"} 3' in lines
    assert 'mllm_request_seconds_bucket{le="+Inf"} 4' in lines and "mllm_request_seconds_count 4" in lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("patience, promise", [(None, "the server has stopped; all requests were answered"), (5, "")])
def test_a_signal_stops_the_server_without_an_error(
    model: LoadedModel, number: int, patience: int | None, promise: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With patience, requests may have been cancelled, so nothing is said about them."""
    caplog.set_level("INFO")
    listener = bound_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    former = signal.getsignal(number)

    def stop() -> None:
        httpx.get(f"http://127.0.0.1:{port}/health", timeout=30, trust_env=False)  # it has started
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    with listener, warnings.catch_warnings():
        try:
            run(build_app(model), listener, model, patience)
        except KeyboardInterrupt:
            pytest.fail("Ctrl-C is an error")
    thread.join()
    assert signal.getsignal(number) is former
    assert caplog.messages[-1] == (promise or "the server has stopped")
