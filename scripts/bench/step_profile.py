"""Profile of one update of a trainer: CPU time by kind of operation, and the share of the limit of matrix products."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

KINDS = {
    "matrix products": (
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::linear",
        "mkldnn",
        "convolution",
    ),
    "attention": ("scaled_dot_product", "flash_attention"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::index", "aten::clone", "aten::fill_", "aten::zero_"),
    "optimizer and clipping": ("adam", "_foreach", "Optimizer"),
}
"""Kind -> parts of the names of its operations. Others are 'other operations', such as norms and activations."""


class StepProfile(TrainerCallback):
    """Callback that profiles the second update of a training; the first one is a warm-up."""

    def __init__(self) -> None:
        self.profile = profile(activities=[ProfilerActivity.CPU], with_flops=True)
        self.seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start at the second update."""
        if state.global_step == 1:
            self.seconds = -time.perf_counter()
            self.profile.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the profile and the training."""
        if state.global_step == 2:
            self.profile.stop()
            self.seconds += time.perf_counter()
            control.should_training_stop = True

    def read(self, dtype: torch.dtype) -> dict[str, Any]:
        """Return seconds by kind, floating-point operations of products, and the largest number of them per second."""
        seconds: dict[str, float] = defaultdict(float)
        operations = 0
        for event in self.profile.key_averages():
            kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), "other")
            seconds[kind] += event.self_cpu_time_total / 1e6
            operations += event.flops if kind == "matrix products" else 0
        return {"wall": self.seconds, "kinds": dict(seconds), "operations": operations, "limit": product_rate(dtype)}


def product_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 8) -> float:
    """Return the floating-point operations per second of products of square matrices in this process."""
    first, second = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(first, second)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def profile_table(profiles: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table with a column for each trainer: seconds by kind of operation, and shares of the limit."""
    kinds = [*KINDS, "other"]
    lines = [f"| CPU seconds of one update | {' | '.join(profiles)} |", "|---" * (len(profiles) + 1) + "|"]
    for kind in kinds:
        cells = [f"{values['kinds'].get(kind, 0.0):.2f}" for values in profiles.values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    walls = [f"{values['wall']:.2f}" for values in profiles.values()]
    lines.append(f"| wall time with the profiler | {' | '.join(walls)} |")
    needed = [f"{values['operations'] / 1e9:.0f}" for values in profiles.values()]
    lines.append(f"| 10^9 operations of matrix products | {' | '.join(needed)} |")
    shares = [f"{100 * v['operations'] / v['wall'] / v['limit']:.0f} %" for v in profiles.values()]
    lines.append(f"| their rate as a share of the limit of the processor | {' | '.join(shares)} |")
    return "\n".join(lines)
