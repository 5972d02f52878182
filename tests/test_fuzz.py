"""A short run of `scripts/fuzz.py`, and inputs with which it once ended in a traceback."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import fuzz  # noqa: E402
from fuzz_kinds import Kind, _read_template  # noqa: E402

from mllm.dataset.readers import guarded  # noqa: E402
from mllm.errors import ConfigError, DataError  # noqa: E402
from mllm.models.adapters.files import read_adapter  # noqa: E402
from mllm.tiny.checkpoints import write_tiny  # noqa: E402


def test_a_short_run_finds_nothing(monkeypatch, capfd):
    monkeypatch.setattr(guarded, "SECONDS", guarded.SECONDS)
    assert fuzz.main(["--inputs", "120", "--seed", "11"]) == 0
    out = capfd.readouterr().out
    assert "| header | 156 |" in out
    assert "| all | 276 |" in out


def test_every_outcome_is_recognized():
    def refuse():
        raise DataError("row 3 is empty")

    assert fuzz.outcome_of(refuse) == ("refused", "row 3 is empty")
    assert fuzz.outcome_of(lambda: [][1])[0] == "traceback"
    assert fuzz.outcome_of(list) == ("accepted", "")


def test_an_abort_and_a_hang_of_a_worker_are_recognized():
    calls = {"abort": lambda: os._exit(1), "hang": lambda: time.sleep(60), "accepted": lambda: None}
    worker = fuzz.Worker(lambda name: calls[name]() or fuzz.outcome_of(list), seconds=0.5)
    try:
        for outcome in ("abort", "accepted", "hang", "accepted"):
            assert worker.call(outcome)[0] == outcome
    finally:
        worker.stop()


def test_a_worker_that_ends_before_its_first_input_is_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "WAIT", 0.001)

    def prepare(failures):
        (tmp_path / str(len(list(tmp_path.iterdir())))).touch()
        if len(list(tmp_path.iterdir())) <= failures:
            os._exit(1)

    worker = fuzz.Worker(lambda job: fuzz.outcome_of(list), 5, lambda: prepare(fuzz.ATTEMPTS - 1))
    try:
        assert worker.call(0) == ("accepted", "")
        assert len(list(tmp_path.iterdir())) == fuzz.ATTEMPTS
    finally:
        worker.stop()
    waits: list[float] = []
    monkeypatch.setattr(fuzz.time, "sleep", waits.append)
    worker = fuzz.Worker(lambda job: fuzz.outcome_of(list), 5, lambda: prepare(100))
    with pytest.raises(fuzz.StartError, match="could be started in 5 attempts .it ended before its first input.: free"):
        worker.call(0)
    assert waits == [0.001, 0.002, 0.004, 0.008], "none after the last attempt"


def test_a_run_without_workers_ends_with_its_results_so_far(monkeypatch, capfd):
    monkeypatch.setattr(fuzz, "WAIT", 0.001)
    monkeypatch.setattr(fuzz.Inputs, "prepare", lambda self: os._exit(1))
    monkeypatch.setattr(guarded, "SECONDS", guarded.SECONDS)
    assert fuzz.main(["--inputs", "9"]) == 2
    out = capfd.readouterr().out
    assert "inputs were not read, from image 0 on: no worker process could be started" in out
    assert "| all | 0 |" in out


@pytest.mark.parametrize("change", [fuzz.mutate, fuzz.replace_values])
def test_inputs_depend_on_seed_and_number_only(tmp_path, change):
    example = tmp_path / "rows.json"
    example.write_text('[{"image": "a.png", "answer": 17}]' * 20)
    kind = Kind((example,), Path.read_bytes)
    contents = []
    for number, name in ((5, "a"), (5, "b"), (6, "c")):
        (tmp_path / name).mkdir()
        contents.append(fuzz.write_input(kind, number, 0, tmp_path / name).read_bytes())
    assert contents[0] == contents[1] != contents[2]
    data = example.read_bytes()
    assert change(data, np.random.default_rng(3)) == change(data, np.random.default_rng(3)) != data


@pytest.mark.parametrize("kind", [-1, "", "x", None])
def test_an_adapter_of_an_unknown_type_is_refused(tmp_path, kind):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "r": 2}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be read|describes no LoRA"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("modules", [True, 3, "lm_head", ["lm_head"]])
def test_an_adapter_with_modules_trained_in_full_is_refused_whatever_their_type(tmp_path, modules):
    values = {"peft_type": "LORA", "r": 2, "modules_to_save": modules}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"contains more than LoRA \((modules_to_save = |lm_head)|cannot be read"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("template", ["{% for a in true %}{{ a }}{% endfor %}", "{{ 'x'() }}", "{{ 1 / 0 }}"])
def test_a_template_that_fails_with_an_error_of_python_is_refused(tmp_path, template):
    folder = write_tiny("gemma3n", tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match="the chat template cannot be used"):
        _read_template(folder / "chat_template.jinja")
