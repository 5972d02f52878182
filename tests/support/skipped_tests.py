"""Installation of the packages that skipped tests need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

PACKAGES = {
    "bash scripts/setup.sh --parity": ("llama_cpp", "llama-cpp-python", "deepspeed", "'orbax", "'gemma"),
    "pip install -e '.[notebook]'": ("nbformat", "nbclient", "ipykernel", "ipywidgets"),
    "pip install -e '.[serve]'": ("'fastapi", "gradio"),
    "pip install -e '.[dev]'": ("'trackio'", "selenium"),
    "pip install -e '.[all]'": ("'pandas'", "'gguf'", "'datasets'", "'timm'", "'monai"),
    "pip install -e '.[liger]'": ("liger-kernel",),
}
"""Packages by the command that installs them."""


def how_to_run(reasons: Iterable[str]) -> str:
    """Return one line with the commands that install what skipped tests need; empty if they need no package.

    Args:
        reasons: Why each test was skipped.
    """
    counts: Counter[str] = Counter()
    for reason in reasons:
        for command, packages in PACKAGES.items():
            if any(package in reason for package in packages):
                counts[command] += 1
    if not counts:
        return ""
    parts = [f"{count} by `{command}`" for command, count in counts.items()]
    return f"{counts.total()} skipped tests need packages; run them with: " + ", ".join(parts)
