"""Import of the packages: TensorBoard does not import TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
from mllm import packages
packages._PACKAGES = ()  # these take seconds
packages.import_packages()
from tensorboard.compat import tf
print(tf.io.gfile.exists("/"))
"""


def test_tensorboard_works_without_the_import_of_an_installed_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise AssertionError('imported')")
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).resolve().parents[1]}"}
    ended = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert ended.stdout == "True\n", ended.stderr
