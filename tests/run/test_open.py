"""Changes of the config that a resume allows or refuses, and their messages."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from mllm.errors import ConfigError
from mllm.pipeline.command import run_command
from mllm.pipeline.finetune import main
from mllm.run.open import refuse_changed_optimizer

KEPT = Path("exp/run/latest/config_until_checkpoint-1.py")
RESUMED = ["--cfg-options", "data_args.test=None"]


def test_a_resume_with_another_model_or_optimizer_is_refused(write_config, capsys):
    config = write_config()
    assert main([config, "--cfg-options", "training_args.max_steps=1", "data_args.test=None"]) == 0
    assert run_command(main, [config, "--resume", "--cfg-options", "model_args.lora_r=8"]) == 2
    error = capsys.readouterr().err
    assert "--resume: model_args.lora_r is 8, but the run in " in error
    assert "began with 4; set it back, or start a new run without --resume" in error

    for name in ("sgd", "adafactor"):
        assert run_command(main, [config, "--resume", "--cfg-options", f"training_args.optim={name}"]) == 2
        assert f"--resume: training_args.optim is {name!r}, but the run in" in capsys.readouterr().err
    equal = ["training_args.optim=adamw_torch", "training_args.max_steps=2", "data_args.test=None"]
    assert main([config, "--resume", "--cfg-options", *equal]) == 0, "it reads the state of adamw_torch_fused"


def test_other_options_of_the_optimizer_are_refused(tmp_path):
    def configs(**changes):
        return SimpleNamespace(training_args={"optim": "adafactor", "optim_args": None, **changes})

    refuse_changed_optimizer(configs(), configs(), tmp_path)
    with pytest.raises(ConfigError, match="--resume: training_args.optim_args is 'decay_rate=-0.5', but the run in"):
        refuse_changed_optimizer(configs(optim_args="decay_rate=-0.5"), configs(), tmp_path)


def test_a_resume_with_changed_options_lists_them_and_keeps_the_former_config(write_config, capsys):
    config = write_config()
    assert main([config, *RESUMED, "training_args.max_steps=1"]) == 0
    first = Path("exp/run/latest/config.py").read_text()
    assert main([config, "--resume", *RESUMED, "training_args.max_steps=1"]) == 0
    assert "the config differs from the former config of the run" not in capsys.readouterr().err and not KEPT.exists()
    assert main([config, "--resume", *RESUMED, "training_args.max_steps=1", "data_args.on_error=skip"]) == 0
    log = capsys.readouterr().err
    assert "(config_until_checkpoint-1.py): data_args.on_error is 'skip', was 'raise'" in log
    assert KEPT.read_text() == first
    changes = ["training_args.max_steps=2", "training_args.learning_rate=0.5", "data_args.on_error=skip"]
    assert main([config, "--resume", *RESUMED, *changes]) == 0
    log = capsys.readouterr().err
    assert "training_args.learning_rate is 0.5, was 0.001" in log and "training_args.max_steps is 2, was 1" in log
    assert "data_args.on_error is" not in log
    assert KEPT.read_text() == first, "the config of the first updates is still the one that is kept"


def test_a_start_that_fails_before_it_trains_is_not_the_latest_run(write_config, capsys):
    config = write_config()
    assert main([config, *RESUMED, "training_args.max_steps=1"]) == 0
    trained = Path("exp/run/latest").resolve()
    assert run_command(main, [config, "--cfg-options", "model_args.lora_target='no_such_layer'"]) == 2
    assert "no_such_layer" in capsys.readouterr().err
    assert Path("exp/run/latest").resolve() == trained
    assert main([config, "--resume", *RESUMED, "training_args.max_steps=2"]) == 0
    assert (trained / "checkpoint-2").is_dir()
