"""A real server process, asked by OpenAI's client and by httpx: answers equal those of the library, and it lives on."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import openai
import pytest
import torch
from forked_runs import start_run
from medical_files import write_avi, write_series
from PIL import Image
from pydicom.data import get_testdata_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm import load
from mllm.predict.loaded_model import LoadedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

import serve_load  # noqa: E402

SECRET = "Mrs Miller, born 1950"
LIMITS = ["--max-body-mb", "2", "--max-pixels", "2000000", "--max-tokens", "400", "--queue", "40"]


@dataclass
class Served:
    """The server of this file."""

    url: str
    process: ForkServerProcess
    log: Path
    client: openai.OpenAI
    http: httpx.Client

    def post(self, body: Any = None, **options: Any) -> httpx.Response:
        """Send a chat completion."""
        return self.http.post("/chat/completions", **(options or {"json": body}))


@pytest.fixture(scope="module")
def model(generating_base: Path, generating_adapter: Path, other_adapter: Path) -> LoadedModel:
    """The models of the server, in this process."""
    return load(adapters={"one": generating_adapter, "two": other_adapter}, model=generating_base)


@pytest.fixture(scope="module")
def served(
    generating_base: Path, generating_adapter: Path, other_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server with two adapters and their base."""
    folder = tmp_path_factory.mktemp("server")
    models = ["--adapter", f"one={generating_adapter}", "--adapter", f"two={other_adapter}"]
    arguments = ["serve.py", *models, "--model", str(generating_base), "--port", "0", *LIMITS]
    process = start_run(arguments, folder, folder / "log", {})
    log = folder / "log.err"
    for _ in range(600):
        if log.is_file() and "serving http" in log.read_text():
            break
        assert process.is_alive(), log.read_text() if log.is_file() else "it did not start"
        time.sleep(0.1)
    url = log.read_text().partition("serving ")[2].split(";")[0]
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        yield Served(url, process, log, openai.OpenAI(base_url=url, api_key="-", max_retries=0), http)
    process.terminate()
    process.join(20)
    if process.is_alive():
        process.kill()


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(content).decode("ascii")


def png(folder: Path, number: int = 0) -> str:
    return data_url((folder / f"{number}.png").read_bytes())


def asking(text: str, *images: Any, **options: Any) -> dict[str, Any]:
    """Return a request about images: data URLs, or the object of an image."""
    parts = [{"type": "image_url", "image_url": {"url": one} if isinstance(one, str) else one} for one in images]
    content = [*parts, {"type": "text", "text": text}]
    return {"model": "one", "messages": [{"role": "user", "content": content}], "max_tokens": 8, **options}


def text_of(served: Served, request: dict[str, Any]) -> str:
    response = served.post(request)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_answers_are_those_of_the_library(served: Served, model: LoadedModel, pictures: Path) -> None:
    assert [one.id for one in served.client.models.list()] == ["one", "two", "medgemma"]
    assert served.client.models.retrieve("two") == list(served.client.models.list())[1]
    with pytest.raises(openai.NotFoundError, match="there is no model 'tow': did you mean 'two'"):
        served.client.models.retrieve("tow")
    for name in model.names:
        expected = model.ask(pictures / "0.png", "Why?", model=name, max_new_tokens=8)
        completion = served.client.chat.completions.create(**asking("Why?", png(pictures), model=name))
        (choice,) = completion.choices
        assert (choice.message.content, choice.finish_reason) == (expected.text, "length")
        assert completion.model == name and completion.usage is not None
        assert completion.usage.prompt_tokens == expected.prompt_tokens and completion.usage.completion_tokens == 8
    turns = [
        {"role": "system", "content": "Be short."},
        *asking("What is this?", png(pictures))["messages"],
        {"role": "assistant", "content": "A scan."},
        {"role": "user", "content": "Why?"},
    ]
    several = served.client.chat.completions.create(
        model="two", messages=turns, n=2, temperature=2.0, seed=5, max_tokens=12, stop=["a"]
    )
    assert len({choice.message.content for choice in several.choices}) == 2
    again = served.client.chat.completions.create(
        model="two", messages=turns, n=2, temperature=2.0, seed=5, max_tokens=12, stop=["a"]
    )
    assert [choice.message for choice in again.choices] == [choice.message for choice in several.choices]
    assert all("a" not in str(choice.message.content) for choice in several.choices)


def test_a_stream_has_the_text_of_the_whole_answer(served: Served, pictures: Path) -> None:
    request = asking("What is this?", png(pictures), n=2, temperature=1.5, seed=3, max_tokens=24)
    whole = served.client.chat.completions.create(**request)
    texts, ends = ["", ""], ["", ""]
    chunks = list(served.client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] += choice.finish_reason or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert chunks[-1].usage == whole.usage and len(chunks) > 12


def test_log_probabilities_are_those_of_a_forward_pass(
    served: Served, model: LoadedModel, generating_base: Path, pictures: Path
) -> None:
    """Reference: the logits of transformers for the prompt of its processor and the answer, without an adapter."""
    request = asking("Why?", png(pictures), model="medgemma", logprobs=True, top_logprobs=2, temperature=1.2, seed=1)
    (choice,) = served.client.chat.completions.create(**request).choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    options = dict(max_new_tokens=8, temperature=1.2, seed=1, top_logprobs=0)
    known = model.ask(pictures / "0.png", "Why?", model="medgemma", **options)
    assert known.text == choice.message.content
    processor = AutoProcessor.from_pretrained(generating_base)
    network = AutoModelForImageTextToText.from_pretrained(generating_base).eval()
    content = [{"type": "image", "image": Image.open(pictures / "0.png")}, {"type": "text", "text": "Why?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    for token, generated in zip(choice.logprobs.content, known.probabilities, strict=True):
        with torch.no_grad():
            expected = network(**inputs).logits[0, -1].float().log_softmax(dim=-1)
        top = expected.topk(2)
        assert [one.logprob for one in token.top_logprobs] == pytest.approx(top.values.tolist(), abs=1e-3)
        assert [one.token for one in token.top_logprobs] == [processor.decode([i]) for i in top.indices.tolist()]
        assert token.logprob == pytest.approx(expected[generated.id].item(), abs=1e-3)
        ids = torch.cat([inputs["input_ids"], torch.tensor([[generated.id]])], dim=1)
        types = torch.cat([inputs["token_type_ids"], torch.zeros(1, 1, dtype=torch.long)], dim=1)
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}


def test_dicom_files_volumes_and_videos_are_read_with_the_options_of_their_readers(
    served: Served, model: LoadedModel, tmp_path: Path
) -> None:
    echo = Path(str(get_testdata_file("examples_ybr_color.dcm", download=False)))
    volume = tmp_path / "ct.nii.gz"
    values = np.random.default_rng(0).integers(-1000, 1000, (20, 24, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), volume)
    frames = list(np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), dtype=np.uint8))
    video = Path(write_avi(tmp_path / "echo.avi", frames, "mjpeg"))
    cases: list[tuple[Path, dict[str, Any]]] = [
        (echo, {"frames": 12}),
        (Path(get_testdata_file("CT_small.dcm")), {"window": "lung"}),
        (volume, {"slice": 2, "window": "bone"}),
        (video, {"frames": [1, 4]}),
    ]
    for path, options in cases:
        expected = model.ask(path, "What is seen?", max_new_tokens=8, **options).text
        content = path.read_bytes()
        url = data_url(content, "application/octet-stream")
        assert text_of(served, asking("What is seen?", {"url": url, **options})) == expected, path.name
        request = asking("What is seen?")
        part = {"type": "file", "file": {"filename": path.name, **options}}
        request["messages"][0]["content"].insert(0, part)
        sent = served.post(data={"request": json.dumps(request)}, files={"file": (path.name, content)})
        assert sent.json()["choices"][0]["message"]["content"] == expected, path.name
        part["file"]["file_data"] = base64.b64encode(content).decode("ascii")  # type: ignore[index]
        assert text_of(served, request) == expected
    other = model.ask(echo, "What is seen?", max_new_tokens=8, frames=3).images
    assert other != model.ask(echo, "What is seen?", max_new_tokens=8, frames=12).images


def test_a_series_of_several_uploads_or_data_urls_is_one_volume(
    served: Served, model: LoadedModel, tmp_path: Path
) -> None:
    files = write_series(tmp_path / "study")[::-1]
    expected = model.ask(tmp_path / "study", "What is seen?", max_new_tokens=8, slice=[0, 2], window="lung")
    options: list[dict[str, Any]] = [{"slice": [0, 2], "window": "lung"}, {}, {}, {}]
    urls = [data_url(file.read_bytes(), "application/dicom") for file in files]
    parts = [{"url": url, "series": "ct", **more} for url, more in zip(urls, options, strict=True)]
    completion = served.client.chat.completions.create(**asking("What is seen?", *parts))
    assert completion.choices[0].message.content == expected.text
    assert completion.usage is not None and completion.usage.prompt_tokens == expected.prompt_tokens
    request = asking("What is seen?")
    request["messages"][0]["content"][:0] = [
        {"type": "file", "file": {"filename": file.name, "series": "ct", **more}}
        for file, more in zip(files, options, strict=True)
    ]
    uploads = [("file", (file.name, file.read_bytes())) for file in files]
    sent = served.post(data={"request": json.dumps(request)}, files=uploads)
    assert sent.json()["choices"][0]["message"]["content"] == expected.text
    refused = served.post(data={"request": json.dumps(request)}, files=[*uploads, uploads[0]])
    assert refused.status_code == 400 and "two files have the name '3'" in refused.text
    twice = served.post(files=[("request", (None, json.dumps(request)))] * 2)
    assert twice.status_code == 400 and "has two parts 'request': send one" in twice.text
    several = served.post(asking("What?", *parts, {"url": urls[0], "series": "ct", "slice": 1}))
    assert several.status_code == 400 and "options of a series stand in its first part" in several.text


def bomb(side: int) -> bytes:
    """Return a small PNG file whose header states `side` x `side` pixels, and whose content has as many."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(bytes((side // 8 + 2) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_requests_that_cannot_be_used_get_one_sentence(served: Served, pictures: Path, tmp_path: Path) -> None:
    good = png(pictures)
    (tmp_path / "secret.png").write_bytes((pictures / "0.png").read_bytes())
    ct = data_url(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    text = asking("Why?")
    cases: list[tuple[dict[str, Any], int, str]] = [
        (asking("Why?", model="three"), 404, "there is no model 'three'"),
        (asking("Why?", "http://example.org/a.png"), 400, "an address or a path, which the server does not read"),
        (asking("Why?", str(tmp_path / "secret.png")), 400, "an address or a path, which the server does not read"),
        (asking("Why?", f"file://{tmp_path}/secret.png"), 400, "an address or a path"),
        (asking("Why?", good[:-400]), 400, "messages[0].content[0].image_url: the file"),
        (asking("Why?", good[:-3]), 400, "is no valid base64"),
        (asking("Why?", data_url(b"no image" * 50)), 400, "messages[0].content[0].image_url: the file"),
        (asking("Why?", data_url(b"")), 400, "is empty"),
        (asking("Why?", data_url(bomb(4_000))), 413, "has more than 2,000,000 pixels"),
        (asking("Why?", data_url(bomb(20_000))), 413, "has more than 2,000,000 pixels"),
        (asking("Why?", {"url": ct, "window": "lnug"}), 400, "did you mean 'lung'"),
        (asking("Why?", {"url": ct, "windw": "lung"}), 400, "has no field 'windw': did you mean 'window'"),
        (asking("Why?", {"url": good, "slice": 3}), 400, "slice"),
        (asking("Why? <image>", good), 400, "which stands for an image"),
        (asking("Why? <end_of_turn>"), 400, "contains the control token '<end_of_turn>'"),
        (asking("very long " * 9000), 400, "tokens, and the model reads 8192 with the answer"),
        (asking("Why?", max_tokens=401), 400, "max_tokens is 401, and the limit of this server is 400"),
        (asking("Why?", max_tokens=3, max_completion_tokens=4), 400, "max_tokens and max_completion_tokens differ"),
        (asking("Why?", response_format={"type": "json_object"}), 400, "does not support response_format"),
        (asking("Why?", tools=[{"type": "function"}]), 400, "does not support tools"),
        (asking("Why?", stream_options={"include_usge": True}), 400, "stream_options has no field 'include_usge'"),
        (asking(" \n"), 400, "messages[0] is empty: write a text, or send an image"),
        (
            {**text, "messages": [*text["messages"], {"role": "system", "content": "a"}, *text["messages"]]},
            400,
            "messages[1] is a system message: it must be the first message",
        ),
        (asking("Why?", max_tokens=0), 400, "max_tokens must be at least 1, not 0"),
        (asking("Why?", n=1000), 400, "n is 1000"),
        (asking("Why?", temperature="hot"), 400, "temperature must be a number"),
        (asking("Why?", top_p=float(2)), 400, "top_p must be at most 1"),
        (asking("Why?", temprature=1), 400, "there is no field 'temprature': did you mean 'temperature'"),
        (asking("Why?", frequency_penalty=1), 400, "does not support frequency_penalty"),
        (asking("Why?", stop=[""]), 400, "stop must be"),
        (asking("Why?", top_logprobs=3), 400, "top_logprobs requires logprobs=true"),
        ({**text, "messages": []}, 400, "messages is empty"),
        (
            {**text, "messages": [{"role": "doctor", "content": "a"}]},
            400,
            "messages[0] must be an object with the role",
        ),
        ({**text, "messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content must be a text or a list"),
        ({**text, "messages": [*text["messages"], {"role": "assistant", "content": "a"}]}, 400, "the last message"),
        ({"model": "one"}, 400, "the field 'messages' is missing"),
        (asking("Why?", data_url(bytes(3_000_000))), 413, "larger than 2,097,152 bytes"),
    ]
    for request, status, message in cases:
        for stream in (False, True):
            response = served.post({**request, "stream": stream})
            error = response.json()["error"]
            assert (response.status_code, message in error["message"]) == (status, True), (message, response.text)
            assert "\n" not in error["message"] and str(tmp_path) not in error["message"], error
    for content, kind, status in (
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"{}", "text/plain", 415),
    ):
        response = served.post(content=content, headers={"content-type": kind})
        assert response.status_code == status and response.json()["error"]["message"]
    response = served.post(content=b"a" * 99, headers={"content-type": "multipart/form-data; boundary=x"})
    assert response.status_code == 400 and "multipart" in response.text
    deep = served.post(content=b"[" * 100_000, headers={"content-type": "application/json"})
    assert deep.status_code == 400
    evil = served.http.get("/models", headers={"host": "evil.example"})
    assert evil.status_code == 403
    assert served.http.get("/nothing").status_code == 404
    with pytest.raises(openai.BadRequestError, match="stop must be"):
        served.client.chat.completions.create(**asking("Why?", stop=[""]))
    assert text_of(served, text)


def test_clients_that_leave_cancel_their_answers(served: Served, model: LoadedModel, pictures: Path) -> None:
    long = asking("What is this?", png(pictures), max_tokens=400)
    body = json.dumps(long).encode()
    port = int(served.url.rsplit(":", 1)[1].partition("/")[0])
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for sent in (head, head + b"Content-Length: %d\r\n\r\n" % len(body) + body[:500]):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent)
    for stream in (True, False):
        text = json.dumps({**long, "stream": stream}).encode()
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(text) + text)
        time.sleep(0.3)
        # A reset without an end, as of a killed client.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    expected = model.ask(pictures / "0.png", "Why?", max_new_tokens=8).text
    assert text_of(served, asking("Why?", png(pictures))) == expected
    for _ in range(100):
        figures = served.http.get(served.url.replace("/v1", "/metrics")).text
        if "mllm_open_requests 0" in figures:
            break
        time.sleep(0.1)
    assert 'status="499"' in figures and "mllm_open_requests 0\n" in figures


@pytest.mark.parametrize("code", ["", "import sys; sys.exit('it has no weights')"])
def test_the_load_test_waits_for_its_server_or_ends_with_its_text(tmp_path: Path, code: str) -> None:
    """The text before the address is larger than the buffer of a pipe."""
    code = code or "import sys; print('x' * 70_000, 'serving http://a:1/v1; Ctrl-C', sep='\\n', file=sys.stderr)"
    with (tmp_path / "log").open("wb") as file, subprocess.Popen([sys.executable, "-Sc", code], stderr=file) as process:
        if "weights" not in code:
            assert serve_load.address(process, tmp_path / "log") == "http://a:1/v1"
        else:
            with pytest.raises(SystemExit, match=r"ended with exit code 1 before it served:\nit has no weights$"):
                serve_load.address(process, tmp_path / "log")


def test_many_clients_get_their_own_answers(served: Served) -> None:
    result = asyncio.run(serve_load.load(served.url, "one", 12, 2.5, served.process.pid))
    assert result.sent > 12 and not result.lost and not result.different and not result.errors
    assert set(result.statuses) == {200}
    assert "lost 0" in serve_load.report(result, 2.5)
    figures = served.http.get(served.url.replace("/v1", "/metrics")).text
    counted = sum(int(line.split()[-1]) for line in figures.splitlines() if line.startswith("mllm_requests_total{"))
    assert counted > result.sent
    batches = [line.split()[-1] for line in figures.splitlines() if line.startswith("mllm_batch_answers_")]
    assert float(batches[-2]) > float(batches[-1]), "no two answers were computed together"


def test_a_full_queue_refuses_requests_until_it_has_room(served: Served, pictures: Path) -> None:
    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=served.url, timeout=60, trust_env=False) as client:
            sent = [client.post("/chat/completions", json=asking("Why?", max_tokens=3)) for _ in range(60)]
            return await asyncio.gather(*sent)

    responses = asyncio.run(ask_all())
    codes = [response.status_code for response in responses]
    assert set(codes) == {200, 429} and codes.count(200) >= 40
    refused = responses[codes.index(429)]
    assert "which is its limit: send it again later" in refused.text and refused.headers["retry-after"] == "1"


def test_a_stop_finishes_running_requests_and_nothing_of_a_request_is_logged(served: Served, pictures: Path) -> None:
    served.post(asking(SECRET, png(pictures), max_tokens=1))
    served.post(asking(SECRET + "<end_of_turn>", "data:image/png;base64,AAAA"))
    with served.http.stream("POST", "/chat/completions", json=asking(SECRET, stream=True, max_tokens=60)) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert served.process.pid is not None
        os.kill(served.process.pid, signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and json.loads(rest[-2][6:])["choices"][0]["finish_reason"] in ("length", "stop")
    served.process.join(20)
    assert served.process.exitcode == 0
    log = served.log.read_text()
    assert "the server has stopped; all requests were answered" in log
    assert SECRET not in log and "Traceback" not in log and "POST" not in log


def test_a_picture_is_no_bomb_below_the_limit(served: Served) -> None:
    """The file of `bomb` is a picture, so that it is refused for its size only."""
    assert Image.open(BytesIO(bomb(64))).size == (64, 64)
