"""What leaves a run: an adapter or a merged model, each with its card; importing this registers the exporters."""

from __future__ import annotations

from mllm.export import adapter, merged, student

__all__ = ["adapter", "merged", "student"]
