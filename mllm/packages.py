"""Fast import of PyTorch, torchvision, bitsandbytes, PEFT and transformers."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
from functools import cache
from unittest.mock import patch

_PACKAGES = ("torchvision.ops", "torch._dynamo", "bitsandbytes", "peft", "transformers.trainer")


@cache
def import_packages() -> None:
    """Import the packages that training and predictions need.

    Garbage collections during the imports find little, and later ones need not visit what was imported.
    bitsandbytes decorates four functions with `torch.compile`, which imports the whole compiler. They are used only
    where bitsandbytes has no kernel, and run without the compiler. `torch_compile` of a config is not affected:
    PyTorch reads the variable when a function is decorated.
    """
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
