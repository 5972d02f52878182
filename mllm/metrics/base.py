"""Declaration of the contents of answers that a metric reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from mllm.contents import Content
from mllm.structures import Answer

Metric = Callable[[Sequence[Answer], Sequence[Answer]], dict[str, float]]
"""Entry of METRICS: predictions and references -> figures."""
Reads = Literal[Content, "choices"]
"""Content of a reference that a metric compares. "choices": a text that is also the answer of another row."""
M = TypeVar("M", bound=Callable[..., Any])
_READS: dict[Callable[..., Any], Reads] = {}


def reads(content: Reads) -> Callable[[M], M]:
    """Return a decorator that declares the content of references without which a metric has nothing to compute."""

    def declare(metric: M) -> M:
        _READS[metric] = content
        return metric

    return declare


def content_read(metric: Callable[..., Any]) -> Reads | None:
    """Return the content that a metric declares by `reads`. None: it declares none and applies to all rows."""
    return _READS.get(metric)
