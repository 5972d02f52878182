"""Imports of the server of `forked_runs.py`."""

from __future__ import annotations

import gc

from mllm.packages import import_packages

import_packages()

import transformers.models.gemma3.modeling_gemma3
import transformers.models.gemma3n.modeling_gemma3n  # noqa: F401

import mllm.run.steps  # noqa: F401

gc.freeze()
