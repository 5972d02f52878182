"""The application in this process: tokens, the file of requests, and requests that fail for a reason in the program."""

from __future__ import annotations

import asyncio
import json
import stat
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
