"""Client of an OpenAI-compatible server (vLLM, llama.cpp, Ollama): models and chat completions over HTTP."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from mllm.errors import ConfigError, DataError
from mllm.private_messages import is_private

TOKEN = "MLLM_SERVER_TOKEN"
"""Environment variable with the token of the server. It is sent to the server and written nowhere."""
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Status codes after which a request is sent again."""
OF_A_ROW = frozenset({400, 413, 415, 422})
"""Status codes of refusals whose cause may be the content of the request."""
TRIES = 5
LONGEST_WAIT = 60.0
"""Maximum number of seconds between two tries."""
_TOO_LONG = ("context length", "context size", "context window", "maximum context", "too long", "exceed")
_IMAGE = ("image", "multimodal", "vision", "mmproj")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refusal of redirects, which could send data and token to another host."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        """Return no request, so that the redirect is an error."""


@dataclass(frozen=True)
class ServerClient:
    """Client of one server."""

    url: str
    """Address with the path `/v1`."""
    timeout: float = 600.0
    """Seconds until a request without an answer is sent again."""
    first_wait: float = 1.0
    """Seconds before the second try; each further wait is twice as long."""
    tries: int = TRIES
    _opener: urllib.request.OpenerDirector = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # A proxy of the environment must not see the data that are sent to a server on this machine.
        proxies = [urllib.request.ProxyHandler({})] if is_local(self.url) else []
        object.__setattr__(self, "_opener", urllib.request.build_opener(_NoRedirects, *proxies))

    @classmethod
    def of(cls, address: str, **options: Any) -> ServerClient:
        """Return the client of `http://HOST:PORT`, with or without `/v1` at its end.

        Raises:
            ConfigError: The address has another form.
        """
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"--server must be an address such as http://localhost:8000, not '{address}'")
        if parts.username or parts.password:
            raise ConfigError(f"--server has a name or a password in its address: set the variable {TOKEN} instead")
        url = address.rstrip("/")
        return cls(url if url.endswith("/v1") else f"{url}/v1", **options)

    def models(self) -> list[str]:
        """Return the names of the models that the server has."""
        answer = self._request("/models")
        entries = answer.get("data")
        if not isinstance(entries, list):
            raise ConfigError(f"{self.url}/models has no list of models: --server needs an OpenAI-compatible server")
        return [str(entry.get("id")) for entry in entries if isinstance(entry, dict)]

    def complete(self, request: Mapping[str, Any], row: str, has_images: bool) -> dict[str, Any]:
        """Return the answer of the server to a chat completion.

        Args:
            request: Body of the request.
            row: Row of the data, for messages.
            has_images: The request contains images.

        Raises:
            ConfigError: The server does not answer, or refuses all requests.
            DataError: The server refuses this request.
        """
        return self._request("/chat/completions", request, row, has_images)

    def _request(
        self, path: str, body: Mapping[str, Any] | None = None, row: str = "", has_images: bool = False
    ) -> dict[str, Any]:
        """Send a request, several times if the server is busy or fails, and return its answer."""
        wait = self.first_wait
        for attempt in range(1, self.tries + 1):
            try:
                return self._send(path, body)
            except urllib.error.HTTPError as error:
                with error:
                    text = _message(error)
                if error.code not in RETRIED or attempt == self.tries or _refuses_images(text, has_images):
                    raise self._refusal(error.code, text, row, has_images) from None
                wait = max(wait, _retry_after(error))
            except (OSError, http.client.HTTPException, ValueError) as error:
                if attempt == self.tries:
                    reason = error.reason if isinstance(error, urllib.error.URLError) else error
                    reason = reason if str(reason) else type(error).__name__
                    raise ConfigError(
                        f"the server {self.url} does not answer ({reason}): start it or correct --server"
                    ) from error
            time.sleep(min(wait, LONGEST_WAIT))
            wait *= 2
        raise AssertionError

    def _send(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        headers = {"Accept": "application/json"}
        if token := os.environ.get(TOKEN):
            headers["Authorization"] = f"Bearer {token}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode("utf-8")
        request = urllib.request.Request(self.url + path, data, headers)
        with self._opener.open(request, timeout=self.timeout) as response:
            answer = json.loads(response.read())
        if not isinstance(answer, dict):
            raise ValueError("its answer is no JSON object")
        return answer

    def _refusal(self, code: int, text: str, row: str, has_images: bool) -> ConfigError | DataError:
        """Return the error of a refused request: a `DataError` if the server may accept other rows."""
        said = "" if is_private() or not text else f" ({text[:300]})"
        lower = text.lower()
        if code in (401, 403):
            return ConfigError(f"the server {self.url} refuses the token (status {code}): set the variable {TOKEN}")
        if 300 <= code < 400:
            return ConfigError(f"the server {self.url} redirects to another address: set --server to that address")
        if _refuses_images(text, has_images):
            fix = "serve a model that reads images (llama.cpp: with --mmproj)"
            return ConfigError(f"the server {self.url} refuses images{said}: {fix}")
        if code == 404:
            return ConfigError(f"the server {self.url} does not know the model or the address{said}")
        if row and code in OF_A_ROW:
            if any(words in lower for words in _TOO_LONG):
                reason, fix = (
                    "it is too long for the server",
                    "serve the model with a longer context, or shorten the row",
                )
            else:
                reason, fix = f"the server refuses it with status {code}", "correct the row"
            advice = f"{fix}, or leave such rows out with data_args.on_error='skip'"
            return DataError(f"{row}: {reason}{said}: {advice}", f"{reason}: {advice}")
        return ConfigError(f"the server {self.url} refuses {row or 'a request'} with status {code}{said}")


def is_local(url: str) -> bool:
    """Return True if the host of an address is this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def choose_model(models: Sequence[str], name: str | None, url: str) -> str:
    """Return the name of the model to ask: `name`, or the only one of the server.

    A server that lists no model may have one, such as `transformers serve FOLDER`.

    Raises:
        ConfigError: The server lists others, or several, or none if `name` is None.
    """
    known = ", ".join(models) or "none"
    if name is None:
        if len(models) != 1:
            raise ConfigError(f"the server {url} has {len(models)} models ({known}): choose one with --server-model")
        return models[0]
    if not models or name in models or f"{name}:latest" in models:
        return name
    raise ConfigError(f"the server {url} has no model '{name}': it has {known}")


def _message(error: urllib.error.HTTPError) -> str:
    """Return the message in the body of a refusal, in one line."""
    try:
        text = error.read(100_000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        value = json.loads(text)
        inner = value.get("error") or value.get("detail") or value  # `detail`: FastAPI
        text = str(inner.get("message", text) if isinstance(inner, dict) else inner)
    except (ValueError, AttributeError):
        pass  # the body is plain text
    return " ".join(text.split())


def _refuses_images(text: str, has_images: bool) -> bool:
    """Return True for a message that images are not supported."""
    lower = text.lower()
    return has_images and any(word in lower for word in _IMAGE) and ("support" in lower or "not " in lower)


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Return the seconds that the server asks to wait; 0 without a number."""
    value = error.headers.get("Retry-After") or ""
    return float(value) if value.isdecimal() else 0.0
