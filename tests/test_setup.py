"""Metadata in `setup.py`, the pinned packages, and the setup script."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.version import Version

from mllm.config.hardware import MINIMUM_VERSIONS

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))


@pytest.fixture
def promised(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The keyword arguments that `setup.py` passes to `setuptools.setup`."""
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", arguments.update)
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    monkeypatch.chdir(ROOT)
    exec(compile(source, str(ROOT / "setup.py"), "exec"), {"__file__": str(ROOT / "setup.py"), "__name__": "setup"})
    return arguments


def pinned() -> list[Requirement]:
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_names(promised: dict[str, Any]) -> None:
    assert promised["name"] == "mllm-medical"
    assert promised["python_requires"] == ">=3.10"
    assert promised["license"] == "Apache-2.0"
    assert {"mllm", "mllm.config", "mllm.dataset.single_image_dataset"} <= set(promised["packages"])
    extras = {"dicom", "nifti", "video", "privacy", "gguf", "text", "evaluation", "all"}
    extras |= {"dev", "notebook", "bench", "parity", "deepspeed", "jax", "jax-reference", "serve", "liger"}
    assert set(promised["extras_require"]) == extras


def test_core_has_the_packages_of_every_run(promised: dict[str, Any]) -> None:
    core = {Requirement(line).name for line in promised["install_requires"]}
    assert {"torch", "torchvision", "transformers", "peft", "accelerate", "bitsandbytes", "mmengine"} <= core
    assert {"pillow", "sentencepiece", "safetensors"} <= core


def test_the_extra_all_includes_every_file_format_but_no_tools(promised: dict[str, Any]) -> None:
    extras = promised["extras_require"]
    for name in ("dicom", "nifti", "video", "privacy", "gguf"):
        assert set(extras[name]) <= set(extras["all"])
    for name in ("dev", "notebook", "bench", "parity", "deepspeed", "jax", "jax-reference"):
        assert not set(extras[name]) & set(extras["all"])


def test_lower_bounds_only(promised: dict[str, Any]) -> None:
    lines = [*promised["install_requires"], *(line for extra in promised["extras_require"].values() for line in extra)]
    for line in lines:
        assert [specifier.operator for specifier in Requirement(line).specifier] == [">="], line


def test_the_console_script_exists(promised: dict[str, Any]) -> None:
    (script,) = promised["entry_points"]["console_scripts"]
    name, module, function = re.fullmatch(r"(\w+) = ([\w.]+):(\w+)", script).groups()  # type: ignore[union-attr]
    assert name == "mllm"
    assert callable(vars(importlib.import_module(module))[function])


def test_constraints_are_exact_and_name_no_host() -> None:
    assert len(pinned()) > 60
    for requirement in pinned():
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], str(requirement)
    text = CONSTRAINTS.read_text(encoding="utf-8")
    assert "--hash" not in text
    assert "://" not in text
    assert not re.search(r"^(nvidia|cuda|triton)", text, re.MULTILINE), "these exist on one platform only"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_constraints_keep_within_the_lower_bounds(promised: dict[str, Any], python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.1"}
    pins = [pin for pin in pinned() if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {pin.name.lower(): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(versions) == len(pins), "a package is pinned twice"
    extras = promised["extras_require"]
    names = ("all", "dev", "notebook", "parity", "jax", "jax-reference")
    for line in [*promised["install_requires"], *(line for name in names for line in extras[name])]:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        assert requirement.specifier.contains(versions[requirement.name.lower()]), line


def test_the_start_up_check_accepts_all_installable_versions(promised: dict[str, Any]) -> None:
    """The start-up check never refuses a version that the installation allows."""
    for line in promised["install_requires"]:
        requirement = Requirement(line)
        if requirement.name in MINIMUM_VERSIONS:
            (bound,) = requirement.specifier
            assert Version(bound.version) >= Version(MINIMUM_VERSIONS[requirement.name]), line


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_scripts_can_be_run(script: Path) -> None:
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert re.search(r"^set -e?uo pipefail$", text, re.MULTILINE)
    bash = shutil.which("bash")
    assert bash
    assert subprocess.run([bash, "-n", str(script)], check=False).returncode == 0


def test_a_missing_python_is_one_message(tmp_path: Path) -> None:
    """Without uv and Python on the path, the message says what to install, and no files remain."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    (tmp_path / "setup.py").touch()
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "cut", "head", "cat", "rm", "mkdir", "touch"):
        path = shutil.which(tool)
        assert path
        (tools / tool).symlink_to(path)
    command = [str(tools / "bash"), str(tmp_path / "scripts" / "setup.sh")]
    result = subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "no Python 3.10 or newer was found" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / ".venv").exists()


def test_setup_continues_without_the_packages_of_parity_tests(tmp_path: Path) -> None:
    """If only packages of parity tests are missing and their installation fails, there is one message each."""
    files = ["setup.py", "scripts/constraints.txt", "scripts/setup.sh"]
    for name in (*files, "bin/uv", ".venv/bin/python"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    for name in files:
        shutil.copy(ROOT / name, tmp_path / name)
    for name, line in (("bin/uv", "echo no compiler; exit 1"), (".venv/bin/python", f'exec {sys.executable} -S "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    content = b"".join((tmp_path / name).read_bytes() for name in files)
    stamp = f"{tmp_path}\n{platform.python_version()}\n{hashlib.sha256(content).hexdigest()}\n"
    (tmp_path / ".venv" / ".mllm-stamp").write_text(stamp)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", str(tmp_path / "scripts" / "setup.sh")]
    silent = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert silent.stdout == ""
    result = subprocess.run([*command, "--parity"], env=environment, capture_output=True, text=True, check=True)
    messages = [line.rpartition(": ")[2] for line in result.stdout.splitlines()[1::2]]
    skipped = ("tests that compare with llama.cpp", "tests of ZeRO", "tests that compare with Flax")
    assert messages == [f"{tests} will be skipped" for tests in skipped]
    assert (tmp_path / ".venv" / "setup.log").read_text() == "no compiler\n" * 3
