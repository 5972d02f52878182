"""Warnings about files: each is logged once for each file, and the number of files is limited."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
from PIL import Image

from mllm.private_messages import PublicText, current_row, is_private

logger = logging.getLogger(__name__)

_MAX_FILES = 20
"""Maximum number of files that are named for one kind of warning."""
_CONSTANT_FRACTION = 0.999
"""Fraction of the pixels of a nearly constant image that are within `_CONSTANT_LEVELS`."""
_CONSTANT_LEVELS = 3
_MIN_PIXELS = 64
"""Smaller images are not checked for a constant value."""
CONSTANT = "constant"
"""Kind of the warning about an image of one value."""
_noticed: set[tuple[str, str]] = set()
_counts: Counter[str] = Counter()
_collected: ContextVar[set[str] | None] = ContextVar("collected", default=None)
receivers: list[Callable[[Path, str, str, int], None]] = []
"""Receivers of warnings. A process that has one, such as a guarded process, does not log the warnings itself."""


@contextmanager
def collected() -> Iterator[set[str]]:
    """Add the kinds of all warnings about files in the block to a set, also those that are not logged again."""
    kinds: set[str] = set()
    token = _collected.set(kinds)
    try:
        yield kinds
    finally:
        _collected.reset(token)


@contextmanager
def unlogged() -> Iterator[None]:
    """Log no warnings about files in the block: its files have been read, and reported, by worker processes."""
    receivers.append(_ignore)
    try:
        yield
    finally:
        receivers.remove(_ignore)


def _ignore(path: Path, kind: str, message: str, files: int) -> None:
    """Do nothing with a warning."""


def warn_once(path: Path, kind: str, message: str, files: int = _MAX_FILES) -> None:
    """Log a warning `PATH MESSAGE`, once for each kind and file; the last one states that further files are not named.

    In a private run the warning names the row and the kind, because path and message have values of the data.

    Args:
        path: The file.
        kind: Kind of the warning, to count its files; a literal.
        message: Text after the path.
        files: Maximum number of files that are named for this kind.
    """
    for receive in receivers:
        receive(path, kind, message, files)
    if (kinds := _collected.get()) is not None:
        kinds.add(kind)
    if receivers or (kind, str(path)) in _noticed or _counts[kind] >= files:
        return
    _noticed.add((kind, str(path)))
    _counts[kind] += 1
    end = " (further files with this warning are not named)" if _counts[kind] == files else ""
    if is_private():
        logger.warning("%s", PublicText(f"{current_row()}: its file is unusual ({kind}){end}"))
    else:
        logger.warning("%s %s%s", path, message, end)


def report_constant(path: Path, image: Image.Image) -> None:
    """Warn once of each file with an image whose pixels nearly all have the same value."""
    pixels = image.width * image.height
    if pixels < _MIN_PIXELS:
        return
    counts = np.asarray(image.histogram()).reshape(-1, 256)
    sums = np.cumsum(np.pad(counts, ((0, 0), (1, 0))), axis=1)
    within = (sums[:, _CONSTANT_LEVELS:] - sums[:, :-_CONSTANT_LEVELS]).max(axis=1)
    if (within >= _CONSTANT_FRACTION * pixels).all():
        value = tuple(int(channel.argmax()) for channel in counts)
        warn_once(path, CONSTANT, f"is nearly constant: {_CONSTANT_FRACTION:.1%} of its pixels are about {value}")
