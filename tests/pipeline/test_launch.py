"""Command `mllm launch`: commands in several processes. `test_two_processes.py` trains with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest
from processes import CHECKOUT

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


def test_a_port_in_use_an_absent_node_and_options_for_other_programs_are_refused():
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(ConfigError, match=r"could not be started \(.*address already in use\): choose a free port"):
            main(["--nproc_per_node=2", f"--master_port={port}", "train", "run.py"])
    nodes = ["--nnodes=2", "--rdzv_backend=c10d", "--rdzv_endpoint=node1.invalid:29500", "--rdzv_id=run"]
    with pytest.raises(ConfigError, match="the node at --rdzv_endpoint=node1.invalid:29500 cannot be reached"):
        main([*nodes, "--rdzv_conf=timeout=1,read_timeout=1", "train", "run.py"])
    with pytest.raises(ConfigError, match="leave out -m and --no_python"):
        main(["--nproc_per_node=2", "-m", "mllm.pipeline.finetune", "run.py"])


def test_a_failure_of_another_kind_has_no_advice_about_ports():
    with pytest.raises(ConfigError, match=r"the processes could not be started \(.*nproc_per_node.*: eight\)$"):
        main(["--nproc_per_node=eight", "train", "run.py"])


def test_the_exit_code_names_the_signal_that_ended_the_command(tmp_path, monkeypatch, capfd):
    code = "import os, signal, time\nos.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)\n"
    (tmp_path / "ends_its_parent.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(CHECKOUT)]))
    assert main(["--nproc_per_node=1", "train", "run.py", "--import", "ends_its_parent"]) == 128 + signal.SIGTERM
    assert capfd.readouterr().err.endswith("interrupted by SIGTERM: all processes were ended\n")


def test_slurm_starts_one_launcher_per_node_which_meet_at_the_first(tmp_path):
    """A list of nodes that is longer than the buffer of a pipe must not end the script."""
    for name, line in (("scontrol", "seq -f node%g 1 20000"), ("srun", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "30007", "SLURM_JOB_NODELIST": "node[1-20000]", "SLURM_JOB_NUM_NODES": "20000"}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "python", "SLURM_GPUS_ON_NODE": "8", **job}
    command = ["bash", CHECKOUT / "scripts" / "slurm.sh", "my_run.py", "--resume"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == [
        *("--kill-on-bad-exit=1", "python", "mllm/pipeline/launch.py", "--nnodes=20000", "--nproc_per_node=8"),
        *("--rdzv_id=30007", "--rdzv_backend=c10d", "--rdzv_endpoint=node1:30007", "train", "my_run.py", "--resume"),
    ]
