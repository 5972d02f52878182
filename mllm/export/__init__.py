"""Exports of a trained model, each with its facts and model card; importing this registers the exporters."""

from __future__ import annotations

from mllm.export import adapter, merged, student

__all__ = ["adapter", "merged", "student"]
