"""Progress bar of loops over rows and files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

_SECONDS = 2
"""Time after which the bar is shown; shorter loops have none."""
T = TypeVar("T")


def with_progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Return the items, with a progress bar at a terminal while a long loop runs.

    Args:
        items: The items.
        description: Text before the bar.
        total: Number of the items; None: their length.
    """
    return iter(tqdm(items, description, total, disable=None, leave=False, delay=_SECONDS))
