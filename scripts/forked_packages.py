"""Imports of the server of `forked_runs.py`."""

from __future__ import annotations

import gc
import os
from importlib import import_module
from importlib.util import find_spec
from unittest.mock import patch

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from mllm.packages import import_packages

# Modules that most runs import: they draw losses, log to TensorBoard, and build a model with heads.
_MODULES = (
    "PIL.JpegImagePlugin",
    "av",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mllm.models.adapters.attach",
    "mllm.models.builder.build_gemma3n",
    "mllm.models.builder.build_heads",
    "mllm.models.builder.build_medgemma",
    "mllm.models.families",
    "mllm.run.finetune",
    "mllm.run.steps",
    "mllm.tiny.parts",
    "torch.utils.tensorboard",
    "transformers.models.gemma3.modeling_gemma3",
    "transformers.models.gemma3.processing_gemma3",
    "transformers.models.gemma3n.modeling_gemma3n",
    "transformers.models.siglip.modeling_siglip",
    "transformers.models.timm_wrapper.modeling_timm_wrapper",
)

import_packages()
for _name in _MODULES:
    import_module(_name)
if find_spec("deepspeed"):
    with patch.dict(os.environ, DS_ACCELERATOR="cpu"):  # the search for a GPU would initialize it before the fork
        import_module("deepspeed")  # by accelerate, in each run
get_checkpoint_conversion_mapping("gemma3")  # compiles a thousand regular expressions, once per process
gc.freeze()
