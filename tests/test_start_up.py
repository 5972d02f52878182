"""Modules that commands import before they do their work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mllm.tiny.checkpoints import ensure_tiny

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "transformers", "peft", "bitsandbytes", "timm", "datasets", "accelerate", "matplotlib"}
PROGRAM = """
import sys
from mllm.config import hardware
from mllm.pipeline.cli import main
hardware.has_gpu_driver = lambda: False  # also on a machine with a GPU
main({arguments!r})
print("imported:", *sorted({{name.partition(".")[0] for name in sys.modules}}), len(sys.modules), file=sys.stderr)
"""


def imported(*arguments: str) -> tuple[set[str], int]:
    """Return the packages that a command imports, and the number of modules."""
    command = [sys.executable, "-c", PROGRAM.format(arguments=list(arguments))]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout
    *names, count = result.stderr.rpartition("imported:")[2].split()
    return set(names), int(count)


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "registries"),
        ("show", "families", "--untested"),
        ("show", "config", "config/training_configs/medgemma_4gb_test.py"),
        ("show", "config", "config/training_configs/gemma3n_3ncore_kd.py"),
    ],
    ids=" ".join,
)
def test_showing_a_config_or_the_registries_imports_no_model_library(arguments):
    names, count = imported(*arguments)
    assert not names & HEAVY
    assert count < 1000


def test_a_config_of_a_tiny_checkpoint_that_exists_imports_no_model_library():
    config = "config/training_configs/medgemma_cpu_demo.py"
    ensure_tiny("medgemma", ROOT / "ckpt")
    names, _ = imported("show", "config", config)
    assert not names & HEAVY


def test_help_imports_neither_mmengine_nor_numpy():
    names, count = imported("--help")
    assert not names & (HEAVY | {"numpy", "PIL"})
    assert count < 700


def test_the_functions_of_the_notebook_import_no_model_library():
    """The notebook trains in another process."""
    command = [sys.executable, "-c", "import sys, mllm.run.notebook; print(*sys.modules)"]
    modules = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert "mllm.report.figures" in modules and not HEAVY & set(modules)
