"""Reading of the bodies of requests, JSON or multipart, within limits of size and time and without files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request as HttpRequest
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from mllm.serve.limits import Limits, RequestError

REQUEST = "request"
"""Field of a multipart request with the JSON object."""
FILES = 5000
"""Maximum number of files of a multipart request; a series has at most 4,096."""


async def read_body(request: HttpRequest, limits: Limits) -> tuple[bytes, dict[str, bytes]]:
    """Return the JSON text of a request, and its uploaded files by name.

    Raises:
        RequestError: The request is too large, too slow, or has another content type.
        ClientDisconnect: The client left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return await asyncio.wait_for(_bytes(request, limits), limits.seconds), {}
        if kind == "multipart/form-data":
            return await asyncio.wait_for(_form(request, limits), limits.seconds)
    except asyncio.TimeoutError:
        raise RequestError(
            f"the request did not arrive within {limits.seconds:g} seconds: send it again", 408
        ) from None
    raise RequestError("the content type must be application/json or multipart/form-data", 415)


def parse_json(text: bytes) -> dict[str, Any]:
    """Return the JSON object of a request. Raise `RequestError` for another text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        # After a semicolon Python names a function that raises its limit of digits.
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise RequestError(f"the request is no valid JSON: {reason[:200]}") from error
    if not isinstance(value, dict):
        raise RequestError("the request must be a JSON object")
    return value


async def _stream(request: HttpRequest, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Yield the parts of a body. Raise `RequestError` if it is too large."""
    message = f"the request is larger than {limits.body:,} bytes, the limit of this server: send smaller images"
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.body:
        raise RequestError(message, 413)
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limits.body:
            raise RequestError(message, 413)
        yield part


async def _bytes(request: HttpRequest, limits: Limits) -> bytes:
    body = bytearray()
    async for part in _stream(request, limits):
        body += part
    return bytes(body)


async def _form(request: HttpRequest, limits: Limits) -> tuple[bytes, dict[str, bytes]]:
    """Return the JSON text and the files of a multipart request."""
    parser = MultiPartParser(request.headers, _stream(request, limits), max_files=FILES, max_part_size=limits.body)
    parser.spool_max_size = limits.body + 1  # larger files would be written to a disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        reason = error.message if isinstance(error, MultiPartException) else "it has no boundary"
        raise RequestError(f"the multipart request is damaged: {reason}") from error
    uploads = {}
    text = b""
    for name, value in form.multi_items():
        content = await value.read() if isinstance(value, UploadFile) else value.encode("utf-8", "surrogatepass")
        if name == REQUEST and text:
            raise RequestError(f"the multipart request has two parts '{REQUEST}': send one")
        if name == REQUEST:
            text = content
        elif isinstance(value, UploadFile) and value.filename:
            if value.filename in uploads:
                raise RequestError(f"two files have the name '{value.filename[:100]}': give each another name")
            uploads[value.filename] = content
        else:
            raise RequestError(f"the part '{name}' is neither '{REQUEST}' nor a file with a name")
    await form.close()
    if not text:
        raise RequestError(f"the multipart request lacks the part '{REQUEST}' with the JSON object")
    return text, uploads
