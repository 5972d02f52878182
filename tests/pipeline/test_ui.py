"""The command `mllm ui`: mistakes that end before a model is loaded."""

from __future__ import annotations

import socket

import pytest

from mllm.pipeline.command import USER_ERROR, run_command
from mllm.pipeline.ui import main

pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[serve]'")


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the sentence with which the command ends."""
    try:
        code = run_command(main, words)
    except SystemExit as error:
        code = error.code
    assert code == USER_ERROR
    return capsys.readouterr().err


def test_mistakes_end_in_one_sentence(generating_adapter, folder, capsys):
    adapter = ("--adapter", str(generating_adapter))
    assert "set --adapter DIR or --model DIR" in refusal(capsys)
    assert "--adapter none does not exist" in refusal(capsys, "--adapter", "none")
    assert "set --token" in refusal(capsys, *adapter, "--host", "0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1])
        assert f"127.0.0.1:{port} cannot be used" in refusal(capsys, *adapter, "--port", port)
