"""Load test of `mllm serve`: many clients at a time, each answer compared with the one of a lone request.

python scripts/bench/serve_load.py --clients 64 --seconds 300

Without --url it serves a tiny random model from a temporary folder. A client sends its next request when the last one
is answered: texts, images, streams, several answers, and now and then one that is broken off. The command fails if a
request is lost or answered differently, or if the memory of the server grows.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

GROWTH = 0.05
"""Growth of the memory of the server, from a third of the time to the end, above which the command fails."""
BROKEN = 0.03
"""Share of requests that a client breaks off."""


@dataclass
class Load:
    """Requests and answers of all clients."""

    sent: int = 0
    broken: int = 0
    """Requests that the client broke off."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Answered requests by status."""
    different: int = 0
    """Answers that differ from those of lone requests."""
    errors: list[str] = field(default_factory=list)
    """Requests without an answer."""
    seconds: list[float] = field(default_factory=list)
    """Duration of each answered request."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Second, and resident memory of the server in MB."""

    @property
    def lost(self) -> int:
        """Return the number of requests that were neither answered nor broken off."""
        return self.sent - self.broken - sum(self.statuses.values())

    def growth(self) -> float:
        """Return the relative growth of the memory: medians of the middle and of the last third of the time."""
        if len(self.memory) < 6:
            return 0.0
        third = len(self.memory) // 3
        middle, last = ([mb for _, mb in part] for part in (self.memory[third : 2 * third], self.memory[2 * third :]))
        return statistics.median(last) / statistics.median(middle) - 1


def requests_to(model: str, seed: int = 0) -> list[dict[str, Any]]:
    """Return different requests, with and without images, streamed or not."""
    rng = np.random.default_rng(seed)
    urls = []
    for _ in range(3):
        buffer = BytesIO()
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(buffer, "PNG")
        urls.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
    questions = [
        "Why?",
        "What is shown?",
        "Is there an effusion in one of the lungs?",
        "Is the heart larger than usual?",
    ]
    requests = []
    for number in range(16):
        content: list[dict[str, Any]] = [{"type": "text", "text": questions[number % 4]}]
        if number % 4 != 3:
            content.insert(0, {"type": "image_url", "image_url": {"url": urls[number % 3]}})
        options = {"n": 2, "temperature": 1.5, "seed": number} if number % 5 == 4 else {"temperature": 0}
        request = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 4 + number}
        requests.append({**request, **options, "stream": number % 3 == 2})
    return requests


async def answer(client: httpx.AsyncClient, request: dict[str, Any]) -> tuple[int, Any]:
    """Send a request, and return its status and the texts of its answers."""
    async with client.stream("POST", "/chat/completions", json=request) as response:
        if response.status_code != 200 or not request["stream"]:
            value = json.loads(await response.aread())
            if response.status_code != 200:
                return response.status_code, value
            return 200, [choice["message"]["content"] for choice in value["choices"]]
        texts = [""] * request.get("n", 1)
        lines = [line[6:] async for line in response.aiter_lines() if line.startswith("data: ")]
        assert lines.pop() == "[DONE]", "a stream ended early"
        for line in lines:
            for choice in json.loads(line)["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
        return 200, texts


async def load(url: str, model: str, clients: int, seconds: float, pid: int | None = None, token: str = "-") -> Load:
    """Send requests of many clients for some seconds, and return what became of them."""
    result, requests = Load(), requests_to(model)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits, trust_env=False) as client:
        expected = [(await answer(client, request))[1] for request in requests]
        end = time.monotonic() + seconds

        async def run(number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < end:
                choice = rng.randrange(len(requests))
                patience = rng.uniform(0.01, 0.2) if rng.random() < BROKEN else None
                began = time.monotonic()
                result.sent += 1
                try:
                    status, texts = await asyncio.wait_for(answer(client, requests[choice]), patience)
                except asyncio.TimeoutError:
                    result.broken += 1
                    continue
                except (httpx.HTTPError, AssertionError, ValueError) as error:
                    result.errors.append(repr(error))
                    continue
                result.statuses[status] += 1
                result.seconds.append(time.monotonic() - began)
                result.different += status == 200 and texts != expected[choice]

        async def watch(process: psutil.Process) -> None:
            began = time.monotonic()
            while True:
                result.memory.append((time.monotonic() - began, process.memory_info().rss / 1e6))
                await asyncio.sleep(max(0.2, seconds / 60))

        watching = None if pid is None else asyncio.create_task(watch(psutil.Process(pid)))
        await asyncio.gather(*(run(number) for number in range(clients)))
        if watching is not None:
            watching.cancel()
    return result


@contextmanager
def tiny_server(queue: int) -> Iterator[tuple[str, str, int]]:
    """Serve a tiny random model, and yield the address, the name of the model, and the id of the process."""
    from mllm.tiny.checkpoints import write_tiny

    with TemporaryDirectory() as folder:
        model = write_tiny("medgemma", Path(folder) / "tiny", vision={"image_size": 224})
        command = [
            sys.executable,
            "mllm/pipeline/serve.py",
            "--model",
            str(model),
            "--port",
            "0",
            "--queue",
            str(queue),
        ]
        root = Path(__file__).resolve().parents[2]
        log = Path(folder) / "log"
        with log.open("wb") as file:  # a pipe that nobody reads would block the server when it is full
            process = subprocess.Popen(command, stderr=file, cwd=root)
        try:
            yield address(process, log), "tiny", process.pid
            process.terminate()
            print("exit code of the server:", process.wait())
            print(log.read_text(), end="", file=sys.stderr)
        finally:
            process.kill()
            process.wait()


def address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address that a server writes to its log when it has started.

    Raises:
        SystemExit: The server ended before; the message has its text.
    """
    while True:
        code, text = process.poll(), log.read_text()  # in this order, so that the text of an ended server is complete
        if found := re.search(r"^serving (\S+);", text, re.MULTILINE):
            return found[1]
        if code is not None:
            raise SystemExit(f"the server ended with exit code {code} before it served:\n{text.strip()}")
        time.sleep(0.1)


def report(result: Load, seconds: float) -> str:
    """Return the figures of a load in lines."""
    times = sorted(result.seconds)
    middle, late = (times[int(len(times) * share)] for share in (0.5, 0.95))
    lines = [
        f"sent {result.sent}, answered {sum(result.statuses.values())}, broken off {result.broken}, lost {result.lost}",
        f"answers by status: {dict(result.statuses)}; different from lone requests: {result.different}",
        f"{len(times) / seconds:.1f} answers per second; seconds per answer: median {middle:.2f}, 95 % {late:.2f}",
    ]
    if result.memory:
        marks = [result.memory[round(share * (len(result.memory) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)]
        lines.append("memory of the server: " + ", ".join(f"{mb:.0f} MB at {at:.0f} s" for at, mb in marks))
        lines.append(f"growth from the middle to the last third of the time: {100 * result.growth():+.1f} %")
    return "\n".join([*lines, *result.errors[:5]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the load test, and return 1 if a request was lost or answered differently, or if the memory grew."""
    parser = argparse.ArgumentParser(description="Load test of `mllm serve`.")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--url", help="address of a running server, with /v1 (default: a tiny model is served)")
    parser.add_argument("--model", help="name of the model of --url")
    parser.add_argument("--token", default="-")
    args = parser.parse_args(argv)
    if args.url:
        result = asyncio.run(load(args.url, args.model, args.clients, args.seconds, token=args.token))
    else:
        with tiny_server(4 * args.clients) as (url, model, pid):
            result = asyncio.run(load(url, model, args.clients, args.seconds, pid))
    print(report(result, args.seconds))
    return int(bool(result.lost or result.different or result.growth() > GROWTH or set(result.statuses) - {200}))


if __name__ == "__main__":
    sys.exit(main())
