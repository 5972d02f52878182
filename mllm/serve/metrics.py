"""Figures of a running server in the text format of Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the buckets of durations."""
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Upper bounds of the buckets of batch sizes."""


@dataclass
class Histogram:
    """Counts of values below bounds."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> list[str]:
        """Return the lines of Prometheus' format."""
        lines, sum_of_counts = [], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            sum_of_counts += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {sum_of_counts}')
        return [*lines, f"{name}_sum {self.total:g}", f"{name}_count {sum_of_counts}"]


@dataclass
class Metrics:
    """Figures of all requests since the start. None of them has content of a request."""

    requests: Counter[int] = field(default_factory=Counter)
    """Number of finished requests by status code; 499: the client left before the answer."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """Durations of answered requests."""
    batches: Histogram = field(default_factory=lambda: Histogram(SIZES))
    """Numbers of answers that were computed together."""

    def text(self, waiting: int) -> str:
        """Return all figures; `waiting` is the number of requests that wait or are answered."""
        lines = ["# HELP mllm_requests_total Finished requests by status code.", "# TYPE mllm_requests_total counter"]
        lines += [f'mllm_requests_total{{status="{status}"}} {n}' for status, n in sorted(self.requests.items())]
        for name, kind, help_text, value in (
            ("mllm_open_requests", "gauge", "Requests that wait or are answered.", waiting),
            ("mllm_prompt_tokens_total", "counter", "Tokens of answered prompts.", self.prompt_tokens),
            ("mllm_generated_tokens_total", "counter", "Generated tokens.", self.generated_tokens),
        ):
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", f"{name} {value}"]
        for name, help_text, histogram in (
            ("mllm_request_seconds", "Seconds from the arrival of a request to its answer.", self.seconds),
            ("mllm_batch_answers", "Answers that were computed together.", self.batches),
        ):
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} histogram", *histogram.lines(name)]
        return "\n".join(lines) + "\n"
