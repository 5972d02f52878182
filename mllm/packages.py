"""Fast import of PyTorch, torchvision, bitsandbytes, PEFT and transformers."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from functools import cache
from types import ModuleType
from unittest.mock import patch

_PACKAGES = ("torchvision.ops", "torch._dynamo", "bitsandbytes", "peft", "transformers.trainer")
_NO_TENSORFLOW = "tensorboard.compat.notf"
"""Module whose presence makes TensorBoard use its own file functions (`tensorboard/compat/__init__.py`)."""


@cache
def import_packages() -> None:
    """Import the packages that training and predictions need.

    Garbage collections during the imports find little, and later ones need not visit what was imported.
    bitsandbytes decorates four functions with `torch.compile`, which imports the whole compiler. They are used only
    where bitsandbytes has no kernel, and run without the compiler. `torch_compile` of a config is not affected:
    PyTorch reads the variable when a function is decorated.

    Where TensorFlow is installed, as on Colab, TensorBoard would import it for its file functions, which takes seconds.
    """
    sys.modules.setdefault(_NO_TENSORFLOW, ModuleType(_NO_TENSORFLOW))
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with patch.dict(os.environ, TORCHDYNAMO_DISABLE="1"):
            for name in _PACKAGES:
                importlib.import_module(name)
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries in C++ report what the interpreter does not free
    finally:
        if was_enabled:
            gc.enable()
