"""Options of `mllm serve`, and the mistakes that it reports before the model is loaded."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from mllm.errors import ConfigError
from mllm.pipeline.serve import main, parse
from mllm.pipeline.serve_options import adapters_of, serve_options
from mllm.tiny.adapter import write_tiny_adapter


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mistake is found before the model is loaded."""
    monkeypatch.setattr("mllm.serve.server.load_sources", None)


def test_a_port_in_use_is_reported(generating_adapter: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"127\.0\.0\.1:{port} cannot be used \(address already in use\): choose"
        ):
            main(["--adapter", str(generating_adapter), "--port", str(port)])


def test_another_host_needs_a_token(generating_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLLM_SERVER_TOKEN", raising=False)
    arguments = ["--adapter", str(generating_adapter), "--host", "0.0.0.0"]
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0 lets other machines send requests: set --token"):
        main(arguments)
    assert serve_options(parse([*arguments, "--token", "a"])).token == "a"
    monkeypatch.setenv("MLLM_SERVER_TOKEN", "secret")
    assert serve_options(parse(arguments)).token == "secret"
    with pytest.raises(ConfigError, match=r"--host 300\.1\.1\.1 is no address of this machine"):
        main([*arguments[:-1], "300.1.1.1", "--port", "0"])


def test_adapters_have_names(tmp_path: Path) -> None:
    run = "exp/chest_lora/20260101_120000"
    assert adapters_of([f"{run}/adapter", "two=a/b"]) == {"chest_lora": f"{run}/adapter", "two": "a/b"}
    assert adapters_of(["exp/echo/latest/adapter", "x/a=b"]) == {"echo": "exp/echo/latest/adapter", "a=b": "x/a=b"}
    with pytest.raises(ConfigError, match="two adapters have the name 'echo': write --adapter NAME=DIR"):
        adapters_of(["exp/echo/latest/adapter", "runs/echo/latest"])
    with pytest.raises(ConfigError, match="--adapter a= is neither DIR nor NAME=DIR"):
        adapters_of(["a="])


def test_models_that_cannot_be_served_are_reported(
    generating_adapter: Path, tiny_medgemma: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2 and "set --adapter DIR or --model DIR" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--adapter .*absent does not exist"):
        main(["--adapter", str(tmp_path / "absent"), "--port", "0"])
    other = write_tiny_adapter(tiny_medgemma, tmp_path / "other")
    with pytest.raises(ConfigError, match="the adapters 'a' and 'b' cannot share a base: model_name_or_path is"):
        main(["--adapter", f"a={generating_adapter}", "--adapter", f"b={other}", "--port", "0"])
    with pytest.raises(ConfigError, match="--port 70000 is no port"):
        main(["--adapter", str(generating_adapter), "--port", "70000"])


def test_an_absent_extra_is_named(generating_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"mllm serve needs the package uvicorn: pip install -e '\.\[serve\]'"):
        main(["--adapter", str(generating_adapter)])
