"""What llama.cpp computes from an exported file is what transformers computes from the checkpoint."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from mllm.errors import ConfigError
from mllm.export.gguf.model import export_model
from mllm.models.adapter_files import HEADS
from tests.export.gguf.conftest import edited, random_ids, reference, write_model

TOLERANCE = {"llama": 1e-4, "gemma": 2e-3, "gemma2": 2e-3, "gemma3": 2e-3, "gemma3n": 2e-3}


@pytest.mark.parametrize("family", TOLERANCE)
def test_logits_equal_those_of_transformers(
    checkpoints: Callable[[str], Path], runtime: Callable[..., Any], family: str, tmp_path: Path
) -> None:
    folder = checkpoints(family)
    out = export_model(folder, tmp_path / "model.gguf", "f32")
    ids = random_ids()
    expected = reference(AutoModelForCausalLM.from_pretrained(folder), ids)
    found = runtime(out).logits(ids)
    print(family, abs(found - expected).max(), abs(expected).max())
    assert expected.std() > 0.1
    assert np.abs(found - expected).max() < TOLERANCE[family]
