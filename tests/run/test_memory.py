"""Tests of planned and measured memory in the facts of a run."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from mllm.config.hardware import detect
from mllm.engine.meter import Meter
from mllm.run.memory import memory_facts, start_plan, without_launcher


def test_a_run_on_a_cpu_is_planned_only_on_request(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    for device, wanted in (("cpu", None), ("cuda", False)):
        planning = start_plan(replace(detect(), device=device), tmp_path, wanted)
        assert planning.process is None and planning.resident > 50e6
        planning.finish()
    assert not (tmp_path / "plan.json").exists(), "the plan of an earlier start can be of another config"


def test_a_config_that_cannot_be_planned_does_not_stop_the_run(tmp_path, caplog):
    (tmp_path / "config.py").write_text("model_args = 1\n")
    planning = start_plan(replace(detect(), device="cpu"), tmp_path, wanted=True)
    assert planning.process is not None
    with caplog.at_level("INFO"):
        planning.finish()
    assert planning.process.returncode == 2
    assert "the memory of the run was not planned" in caplog.text


def test_a_failed_run_ends_its_plan(tmp_path):
    (tmp_path / "config.py").write_text("import time\ntime.sleep(60)\n")
    planning = start_plan(replace(detect(), device="cpu"), tmp_path, wanted=True)
    assert planning.process is not None
    with pytest.raises(KeyboardInterrupt), planning:
        raise KeyboardInterrupt
    assert planning.process.returncode == -signal.SIGKILL


def test_a_plan_knows_no_launcher_and_all_processes(tmp_path):
    set_by_srun = {"SLURM_STEP_NUM_TASKS": "2", "RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node1"}
    assert without_launcher({**set_by_srun, "PATH": "/bin"}) == {"PATH": "/bin"}
    (tmp_path / "config.py").write_text("model_args = 1\n")
    planning = start_plan(replace(detect(), device="cpu"), tmp_path, wanted=True)
    assert planning.process is not None
    assert planning.process.args[-2:] == ["--gpus", "1"]
    planning.finish()


class Trainer:
    """The parts of a trainer that are read."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.args = type("Arguments", (), {"device": torch.device("cpu")})


def test_facts_compare_the_plan_with_the_memory_of_the_process(tmp_path):
    meter = Meter()
    assert memory_facts(tmp_path, Trainer(meter)) == {}
    plan = {"peak": 1000, "tokens": 200, "samples": 4, "flops_per_sample": 5000.0}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    meter.before = 10**6
    meter.add({})
    facts = memory_facts(tmp_path, Trainer(meter))
    assert facts["planned"] == 1000 and facts["flops_per_token"] == 100.0
    resident = int(open(f"/proc/{os.getpid()}/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")  # noqa: PTH123, SIM115
    assert facts["measured"] == pytest.approx(resident - 10**6, rel=0.1)
    assert facts["tokens_per_second"] is None, "the clock starts with the first batch"
