"""The console script finds its pipelines, and each of them runs as a file from any directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mllm.config.hardware import CHECKOUT
from mllm.errors import ConfigError
from mllm.pipeline.cli import COMMANDS, main


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in COMMANDS)


def test_an_unknown_command_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown command 'trian': did you mean 'train'?"):
        main(["trian"])
    with pytest.raises(ConfigError, match="unknown command 'finetune': finetune.py is the command 'train'"):
        main(["finetune", "run.py"])


def test_a_command_is_its_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "registries"]) == 0
    assert "MODELS" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mllm"])
    with pytest.raises(SystemExit) as excinfo:
        main([command, "--help"])
    assert excinfo.value.code == 0
    assert f"usage: mllm {command}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["finetune", "evaluate_model", "predict", "merge", "convert", "show", "cli"])
def test_a_pipeline_runs_as_a_file_from_another_directory(name: str, tmp_path: Path) -> None:
    """Help does not import PyTorch, so this process takes a fraction of a second."""
    file = CHECKOUT / "mllm" / "pipeline" / f"{name}.py"
    result = subprocess.run([sys.executable, file, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout


def test_the_process_returns_the_exit_code_and_prints_the_message(tmp_path: Path) -> None:
    command = [sys.executable, CHECKOUT / "mllm" / "pipeline" / "cli.py", "predcit"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "unknown command 'predcit': did you mean 'predict'?\n"
