"""Command `mllm launch`: commands in several processes. `test_two_processes.py` trains with it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from mllm.errors import ConfigError
from mllm.pipeline.command import LAUNCHED
from mllm.pipeline.launch import main


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the environment and the handlers of signals, which torchrun replaces."""
    monkeypatch.setenv(LAUNCHED, "1")
    before = dict(os.environ)
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(before)


def test_an_error_of_all_processes_is_printed_once(capfd):
    assert main(["--nproc_per_node=2", "trian", "run.py"]) == 2
    assert capfd.readouterr().err == "unknown command 'trian': did you mean 'train'?\n"


def test_a_port_in_use_and_options_for_other_programs_are_refused():
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(ConfigError, match=r"the processes could not be started \(.*address already in use\)"):
            main(["--nproc_per_node=2", f"--master_port={port}", "train", "run.py"])
    with pytest.raises(ConfigError, match="leave out -m and --no_python"):
        main(["--nproc_per_node=2", "-m", "mllm.pipeline.finetune", "run.py"])
