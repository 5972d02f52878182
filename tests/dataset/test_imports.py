"""Packages that importing the datasets must not import."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ["torch", "transformers", "datasets", "timm", "bitsandbytes", "peft", "accelerate"]
CODE = f"""
import json, sys
import mllm.dataset.builder
from mllm.registry import DATASETS, READERS, TRANSFORMS
counts = [len([registry.find(name) for name in registry.names()]) for registry in (DATASETS, READERS, TRANSFORMS)]
print(json.dumps([sorted(set(sys.modules) & set({HEAVY!r})), counts]))
"""


def test_importing_all_datasets_imports_no_heavy_package():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    imported, counts = json.loads(result.stdout)
    assert imported == []
    assert min(counts) > 5
