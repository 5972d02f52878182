"""An OpenAI-compatible server in a thread, whose answers and failures a test defines."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Reply = tuple[int, Any] | None
"""Status code and body of an answer. None: the connection is closed without one."""


@dataclass
class ChatServer:
    """A running server and its requests, in the order of arrival."""

    url: str
    reply: Callable[[Mapping[str, Any]], Reply]
    """Function of the body of a request."""
    models: list[str] = field(default_factory=lambda: ["tiny"])
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)


def said(text: str, **more: Any) -> Reply:
    """Return the reply with a text as the answer."""
    choice = {"message": {"role": "assistant", "content": text}, **more}
    return 200, {"choices": [choice], "usage": {"completion_tokens": 3}}


def images_of(request: Mapping[str, Any]) -> list[Image.Image]:
    """Return the decoded images of a request."""
    parts = [part for turn in request["messages"] if isinstance(turn["content"], list) for part in turn["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def question_of(request: Mapping[str, Any]) -> str:
    """Return the text of the last turn of a request."""
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else " ".join(part["text"] for part in content if part["type"] == "text")


@contextmanager
def chat_server(reply: Callable[[Mapping[str, Any]], Reply]) -> Iterator[ChatServer]:
    """Run a server on a free port of this machine inside the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send((200, {"data": [{"id": name} for name in state.models]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.requests.append(body)
                state.headers.append(dict(self.headers))
            self._send(state.reply(body))

        def _send(self, reply: Reply) -> None:
            if reply is None:
                self.close_connection = True
                return
            code, body = reply
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(code)
            if code in (301, 302, 307, 308):
                self.send_header("Location", "http://example.invalid/")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    lock = threading.Lock()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = ChatServer(f"http://127.0.0.1:{server.server_port}", reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
