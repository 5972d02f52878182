"""Tests of run folders that an older version wrote (commit c94b3ef): their `config.py` and `mllm.json`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mllm.config.hardware import Hardware
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.errors import ConfigError
from mllm.export.facts import Facts
from mllm.export.saved_model import adapter_args, adapter_facts
from mllm.run.open import refuse_changed_model

CPU = Hardware("cpu", "x86_64", None, 0, 0, 8 << 30, 2)
ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "tests" / "support" / "old_runs"
TINY = {
    "perceptionGPT_refcoco": ["model_args.model_name_or_path=ckpt/tiny-shikra"],
    "gemma3n_3ncore_kd": [
        "model_args.model_name_or_path=ckpt/tiny-gemma3n-student",
        "distill_args.teacher.model_name_or_path=ckpt/tiny-medgemma",
    ],
}
"""The checkpoints that `--tiny` set in the old configs."""


@pytest.fixture(params=TINY)
def old_run(request: pytest.FixtureRequest, folder: Path) -> Path:
    """Return a run folder as the older version wrote it, without weights."""
    run = Path("exp") / request.param / "20261121_142456"
    (run / "adapter").mkdir(parents=True)
    shutil.copy(FILES / f"{request.param}.config.txt", run / "config.py")
    shutil.copy(FILES / f"{request.param}.mllm.json", run / "adapter" / "mllm.json")
    base = json.loads((run / "adapter" / "mllm.json").read_text())["base"]
    (run / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (run / "adapter" / "adapter_model.safetensors").touch()
    return run


def test_an_old_run_can_be_resumed_by_the_current_config(old_run: Path) -> None:
    old = read_config(old_run / "config.py")
    assert old.name == old_run.parent.name
    shipped = ROOT / "config" / "training_configs" / f"{old.name}.py"
    present = apply_rules(read_config(shipped, TINY[old.name]), CPU)[0]
    refuse_changed_model(present, old, old_run)
    other = replace(present, model_args=replace(present.model_args, lora_r=3))
    with pytest.raises(ConfigError, match="model_args.lora_r is 3, but the run in .* began with"):
        refuse_changed_model(other, old, old_run)


def test_an_old_config_keeps_its_values_when_it_is_written_again(old_run: Path) -> None:
    old = read_config(old_run / "config.py")
    (old_run / "again.py").write_text(old.text)
    again = read_config(old_run / "again.py")
    assert (again.model_args, again.data_args, again.objectives) == (old.model_args, old.data_args, old.objectives)
    assert again.training_args == old.training_args


def test_an_old_adapter_is_encoded_as_in_its_training(old_run: Path) -> None:
    """Keys of other families, which the older version wrote with their defaults, are left out."""
    args, settings = adapter_args(str(old_run)), json.loads((old_run / "adapter" / "mllm.json").read_text())
    base = Path(settings.pop("base"))
    assert Path(args.model_name_or_path) in (base, ROOT / base)  # exists in this checkout after a run with `--tiny`
    known = {key: value for key, value in settings.items() if key in vars(args)}
    assert {key: vars(args)[key] for key in known} == known
    assert all(settings[key] in (None, False, -2) for key in settings.keys() - known.keys())
    facts = adapter_facts(args)
    assert facts == Facts(args.model_name_or_path, facts.settings) and facts.settings["type"] == args.type
