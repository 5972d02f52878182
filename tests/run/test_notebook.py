"""The notebook: a config that differs only by the values of the sliders, and the output of its run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from mllm.config.hardware import CHECKOUT
from mllm.config.reading import read_config
from mllm.errors import ConfigError, TrainingError
from mllm.pipeline.finetune import main
from mllm.run.notebook import SLIDERS, figures, make_widgets, pictures, train, write_config

VALUES = {name: slider.value for name, slider in SLIDERS.items()}
BASE = """
model_args = dict(type="gemma3n-student", model_name_or_path="ckpt/student", part="vision", lora_r=4, lora_alpha=4,
                  lora_target="vision", heads=dict(measures=dict(type="RegressionHead")))
distill_args = dict(teacher=dict(type="medsiglip", model_name_or_path="ckpt/teacher"))
objectives = dict(
    measures=dict(type="MeasureLoss", weight={task}),
    feature_match=dict(type="FeatureMatch", weight={features}),
    consistency=dict(type="VolumeConsistency", weight=0.1),
)
data_args = dict(train=dict(type="EchoNetDataset", data_path="echo", split="TRAIN", size=7, seed=5),
                 validation=dict(type="EchoNetDataset", data_path="echo", split="VAL", size=3))
training_args = dict(num_train_epochs=9, learning_rate=1e-3, weight_decay=0.01)
"""


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_base(task: str = "dict(start=0.9, end=0.7)", features: str = "dict(start=0.1, end=0.3)") -> Path:
    path = Path("configs/base.py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(BASE.format(task=task, features=features))
    return path


def test_a_config_differs_only_by_the_sliders():
    base = write_base()
    chosen = dict(sample_size=351, learning_rate=3.2e-4, epochs=12, feature_weight=0.25, lora_r=12, lora_alpha=20)
    config = read_config(write_config(chosen, base, "exp/mine.py"))
    expected = read_config(base).replaced(
        **{
            "name": "mine",
            "model_args.lora_r": 12,
            "model_args.lora_alpha": 20,
            "data_args.train.size": 351,
            "training_args.learning_rate": 3.2e-4,
            "training_args.num_train_epochs": 12,
            "objectives.feature_match.weight": {"start": 0.25, "end": 0.3},
            "objectives.measures.weight": {"start": 0.75, "end": 0.7},
        }
    )
    assert config == expected


def test_constant_weights_stay_constant():
    config = read_config(write_config(VALUES, write_base("1.0", "0.2"), "mine.py"))
    weights = {name: options.get("weight") for name, options in config.objectives.items()}
    assert weights == {"measures": 1.0, "feature_match": 0.05, "consistency": 0.1}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lora_r": 2}, "lora_r is 2, but must be between 4 and 64"),
        ({"learning_rate": 0.1}, "learning_rate is 0.1, but must be between 1e-06 and 0.01"),
        ({"lora_rank": 8}, "there is no slider 'lora_rank': did you mean 'lora_r'"),
    ],
)
def test_values_outside_of_the_sliders_are_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        write_config({**VALUES, **changes}, write_base(), "mine.py")
    assert not Path("mine.py").exists()


def test_a_base_without_a_teacher_is_refused():
    with pytest.raises(ConfigError, match=r"medgemma_cpu_demo\.py has 0 objectives of type FeatureMatch"):
        write_config(VALUES, CHECKOUT / "config" / "training_configs" / "medgemma_cpu_demo.py", "mine.py")


def test_widgets_have_the_range_of_the_sliders():
    ipywidgets = pytest.importorskip("ipywidgets", reason="ipywidgets is not installed: pip install -e '.[notebook]'")
    widgets = make_widgets()
    assert {name: widget.value for name, widget in widgets.items()} == pytest.approx(VALUES)
    for name, slider in SLIDERS.items():
        widget = widgets[name]
        ends = (slider.minimum, slider.maximum)
        if isinstance(widget, ipywidgets.FloatLogSlider):
            assert (10**widget.min, 10**widget.max) == pytest.approx(ends)
        else:
            assert (widget.min, widget.max, widget.step) == pytest.approx((*ends, slider.step))
        for end in ("min", "max"):
            widget.value = 10 ** getattr(widget, end) if slider.step is None else getattr(widget, end)
            write_config({**VALUES, name: widget.value}, write_base(), "mine.py")
    assert [name for name, widget in widgets.items() if isinstance(widget, ipywidgets.IntSlider)] == [
        *("sample_size", "epochs", "lora_r", "lora_alpha")
    ]


def test_the_results_of_a_run_are_shown(write_config):
    """`tests/test_notebooks.py` starts a whole run in another process and reads its output."""
    assert main([write_config('data_args["compute_metric"] = "accuracy"')]) == 0
    run = Path("exp/run/latest").resolve()
    assert pictures(run) == [run / "loss.png"]
    (run / "training_progress.png").touch()
    (run / "measures").mkdir()
    (run / "measures" / "EF.png").touch()
    assert [path.name for path in pictures(run)] == ["training_progress.png", "loss.png", "EF.png"]
    measured = json.loads((run / "metrics.json").read_text())["figures"]["accuracy"]
    rows = [line.split() for line in figures(run).splitlines()]
    assert ["accuracy", "chance", f"{measured['chance']:.4f}"] in rows
    (run / "metrics.json").unlink()
    assert figures(run).startswith("There are no figures")


def test_a_failed_run_raises_its_last_line(write_config):
    with pytest.raises(TrainingError, match=r"exit code 2: .*unknown key 'lora_rr'"):
        train(write_config("model_args['lora_rr'] = 3"))


def test_an_interrupted_run_keeps_its_checkpoints(write_config):
    config = write_config("training_args['max_steps'] = 10000")
    code = f"from mllm.run.notebook import train; train({config!r})"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )
    runs = Path("exp/run/latest")
    deadline = time.monotonic() + 120
    while not (runs / "checkpoint-1" / "complete.json").is_file() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in output
    assert "step     1  loss " in output
    assert (runs / "checkpoint-1" / "complete.json").is_file()
