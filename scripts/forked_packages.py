"""Imports of the server of `forked_runs.py`."""

from __future__ import annotations

import gc
from importlib import import_module

from mllm.packages import import_packages

# Modules that most runs import: they draw losses, log to TensorBoard, and build a model with heads.
_MODULES = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mllm.models.builder.build_gemma3n",
    "mllm.models.builder.build_heads",
    "mllm.models.builder.build_medgemma",
    "mllm.run.finetune",
    "mllm.run.steps",
    "torch.utils.tensorboard",
    "transformers.models.gemma3.modeling_gemma3",
    "transformers.models.gemma3n.modeling_gemma3n",
)

import_packages()
for _name in _MODULES:
    import_module(_name)
gc.freeze()
