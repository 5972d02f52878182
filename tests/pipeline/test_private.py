"""Private runs through the command: killed and resumed runs have the same ledger, and their models answer."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from processes import CHECKOUT, finetune
from safetensors.torch import load_file

from mllm.engine.privacy.accounting import epsilon_spent, noise_multiplier_for
from mllm.errors import ConfigError
from mllm.export.merge import merge
from mllm.pipeline.finetune import main
from mllm.pipeline.predict import main as predict

KILLER = '''
"""Kills its own process in the forward of an update after the second, where KILL is set."""
import os, signal
from pathlib import Path
from mllm.objectives.text import NextToken
from mllm.registry import OBJECTIVES

@OBJECTIVES.register_module()
class Fragile(NextToken):
    """Next-token prediction that kills the process during an update."""
    def total(self, context):
        if "KILL" in os.environ and self.training and Path("exp/run/latest/checkpoint-2/complete.json").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().total(context)
'''
# A draw has five of eight units on average, so the drawn units differ between runs.
MORE = """
_base_ = ["{checkout}/config/training_configs/{name}.py"]
custom_imports = dict(imports=["killer"])
objectives = dict(next_token=dict(type="Fragile"))
training_args = dict(max_steps=5, per_device_train_batch_size=5, save_steps=2, eval_strategy="no", warmup_steps=0,
                     dataloader_num_workers=0)
{more}
"""
ALOUD = [
    "--max-new-tokens",
    "6",
    "--temperature",
    "1.5",
    "--seed",
    "1",
]  # the most probable token of a random model may be no word
SMALL = "model_args = dict(image_size=112, image_token_len=16, max_length=192)"


def read(*names: str) -> Any:
    return json.loads(Path("exp/run/latest", *names).read_text())


@pytest.mark.parametrize(
    ("name", "more", "unit", "epsilon"),
    [("vaultgemma_dp", "", "sample", 3.0), ("medgemma_dp_reports", SMALL, "patient", 8.0)],
)
def test_a_killed_private_run_continues_to_the_record_of_an_uninterrupted_one(
    folder, capsys, name, more, unit, epsilon
):
    Path("killer.py").write_text(KILLER)
    Path("run.py").write_text(MORE.format(checkout=CHECKOUT, name=name, more=more))
    killed = finetune("run.py", "--tiny", KILL="1")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert read("privacy.json")["steps"] == read("checkpoint-2", "ledger.json")["ledger"]["entries"][0]["steps"] == 2
    began = Path("exp/run/latest").resolve()
    assert main(["run.py", "--tiny", "--resume"]) == 0
    record, ledger, resumed = (
        read("privacy.json"),
        read("checkpoint-5", "ledger.json"),
        Path("exp/run/latest").resolve(),
    )
    assert resumed == began
    merged = merge(str(resumed / "adapter"), "merged")
    for folder in (resumed / "adapter", merged):
        assert json.loads((folder / "facts.json").read_text())["privacy"] == record
        assert f"**{record['guarantee']}**" in (folder / "README.md").read_text()

    # The epsilon of an uninterrupted run is known in advance and does not depend on the draws.
    units = record["units"]
    sigma = noise_multiplier_for(epsilon, 1e-5, 5 / units, 5, "prv")
    assert record["ledger"] == [{"noise_multiplier": sigma, "sample_rate": 5 / units, "steps": 5}]
    assert record["epsilon_spent"] == epsilon_spent([(sigma, 5 / units, 5)], 1e-5, "prv") <= epsilon
    assert record["unit"] == unit and record["steps"] == 5
    if unit == "sample":
        assert main(["run.py", "--tiny", "--cfg-options", "training_args.output_dir=whole"]) == 0
        assert json.loads(Path("whole/privacy.json").read_text()) == record
        assert json.loads(Path("whole/checkpoint-5/ledger.json").read_text()) == ledger
        adapters = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (resumed, Path("whole"))]
        assert any(not adapters[0][key].equal(adapters[1][key]) for key in adapters[0]), "the noise is not known"
    capsys.readouterr()
    assert predict(["--adapter", "exp/run/latest", "--question", "What is seen?", *ALOUD]) == 0
    assert capsys.readouterr().out.strip()


MEASURES = """
_base_ = ["{checkout}/config/_base_/datasets/echonet.py", "{checkout}/config/_base_/runtime/private.py"]
model_args = dict(
    type="medsiglip", model_name_or_path="google/medsiglip-448", part="vision", lora_r=4, lora_target="vision",
    heads=dict(measures=dict(type="RegressionHead", views=["ED", "ES"],
                             scale=dict(EF=(55.0, 12.0), EDV=(91.0, 45.0), ESV=(43.0, 35.0)))),
)
data_args = dict(train=dict(size=8), validation=None, test=None)
objectives = dict(measures=dict(type="MeasureLoss"), agreement=dict(type="VolumeConsistency", weight=0.1))
training_args = dict(max_steps=3, per_device_train_batch_size=4, eval_strategy="no", warmup_steps=0,
                     dataloader_num_workers=0)
privacy_args = dict(unit="patient", physical_batch_size={physical}, test_noise_seed=3)
"""


def test_a_private_run_learns_measures_and_writes_no_private_number_beforehand(folder):
    for physical in (1, 3):
        Path(f"run{physical}.py").write_text(MEASURES.format(checkout=CHECKOUT, physical=physical))
        assert main([f"run{physical}.py", "--tiny", "--cfg-options", f"training_args.output_dir=p{physical}"]) == 0
    one, three = (load_file(f"p{physical}/adapter/heads.safetensors") for physical in (1, 3))
    assert one["heads.measures.mean"].tolist() == [55.0, 91.0, 43.0]
    for key, tensor in one.items():
        assert (three[key] - tensor).abs().max() < 1e-6, key
    record = json.loads(Path("p1/privacy.json").read_text())
    assert (record["unit"], record["steps"]) == ("patient", 3) and record["epsilon_spent"] <= 3.0
    assert "EF 1.0 %, EDV 1.0 mL, ESV 1.0 mL" in Path("p3/first_batch.md").read_text()
    losses = [row["loss"] for row in json.loads(Path("p1/training_log.json").read_text())["rows"] if "loss" in row]
    assert len(losses) == 3 and all(loss > 0 for loss in losses)
    assert not Path("p1/epochs").exists(), "a killed run would make those updates again, and count them once"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("", r"scale of a RegressionHead needs mean and standard deviation of .* has \(\) for 'ESV'"),
        (", LVM=(43.0, 35.0)", "scale of a RegressionHead has no measure 'LVM'; known are EDV, EF, ESV"),
    ],
)
def test_a_scale_of_other_measures_is_refused(folder, other, message):
    text = MEASURES.format(checkout=CHECKOUT, physical=1)
    assert ", ESV=(43.0, 35.0)" in text
    Path("run.py").write_text(text.replace(", ESV=(43.0, 35.0)", other))
    with pytest.raises(ConfigError, match=message):
        main(["run.py", "--tiny"])
