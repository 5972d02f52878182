"""Limits of requests to the server, and the errors of requests that it refuses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of requests, so that no request can take the memory or the time of the others."""

    body: int = 64 << 20
    """Maximum size of a request in bytes."""
    upload: int = 2 << 30
    """Maximum size of a file that is dropped on the page, in bytes."""
    pixels: int = 50_000_000
    """Maximum number of pixels of all images of a request."""
    images: int = 512
    """Maximum number of images of a request: the model enlarges each one to the size of its input."""
    tokens: int = 2048
    """Maximum number of generated tokens of an answer."""
    answers: int = 16
    """Maximum number of answers to a request."""
    queue: int = 256
    """Maximum number of requests that wait or are answered."""
    seconds: float = 60.0
    """Seconds within which a request must arrive."""


class RequestError(Exception):
    """Request that the server refuses.

    Args:
        message: One sentence with cause and fix.
        status: Status code of HTTP.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
