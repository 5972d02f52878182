"""Limit of the pixels of all images that are selected from a file, for callers that read files of strangers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from mllm.errors import DataError

_LEAST = 1024
"""Number of pixels that an image counts at least, since each one takes memory and time besides its pixels."""


class TooManyPixelsError(DataError):
    """Selection of images that exceeds the limit. Its `reason` is the sentence without the file."""


@dataclass
class _Limit:
    """Limit in a block of `limited_pixels`."""

    pixels: int
    counted: int = 0
    """Pixels that were counted one image at a time."""


_limit: ContextVar[_Limit | None] = ContextVar("pixel_limit", default=None)


@contextmanager
def limited_pixels(pixels: int | None) -> Iterator[None]:
    """Let readers in the block refuse selections of more pixels before they decode them; None: there is no limit.

    The limit also holds in the guarded process.
    """
    token = _limit.set(None if pixels is None else _Limit(pixels))
    try:
        yield
    finally:
        _limit.reset(token)


def counted_pixels(width: int, height: int) -> int:
    """Return the number of pixels that an image of this size counts: at least 1,024."""
    return max(width * height, _LEAST)


def pixel_limit() -> int | None:
    """Return the limit; None: there is none."""
    limit = _limit.get()
    return None if limit is None else limit.pixels


def check_selected(path: Path, count: int, width: int, height: int) -> None:
    """Raise `TooManyPixelsError` if `count` images of this size have together more pixels than the limit."""
    limit = _limit.get()
    pixels = count * counted_pixels(width, height)
    if limit is not None and pixels > limit.pixels:
        reason = f"its images have {pixels:,} pixels, and the limit is {limit.pixels:,}: select fewer"
        raise TooManyPixelsError.at(str(path), reason)


def count_next(path: Path, width: int, height: int) -> None:
    """Count the next image of a file whose images have different sizes. Raise `TooManyPixelsError` at the limit."""
    limit = _limit.get()
    if limit is None:
        return
    limit.counted += counted_pixels(width, height)
    if limit.counted > limit.pixels:
        raise TooManyPixelsError.at(
            str(path), f"its images have more than {limit.pixels:,} pixels, the limit: select fewer or smaller ones"
        )
