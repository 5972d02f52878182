"""Keys, types and defaults of `training_args`."""

from __future__ import annotations

import dataclasses
import enum
import subprocess
import sys
import typing
from typing import Any

import pytest
from transformers import TrainingArguments

from mllm.config import training_args
from mllm.config.reading import read_config
from mllm.config.schema import StoppingArgs
from mllm.config.training_args import (
    RUN_DEFAULTS,
    changed_values,
    fill_defaults,
    import_fields,
    read_fields,
    training_fields,
)
from mllm.options import format_type


def test_the_source_has_the_fields_of_the_imported_class():
    read, imported = read_fields(), import_fields()
    assert list(read) == list(imported)
    for name, item in read.items():
        assert item.default == imported[name].default and type(item.default) is type(imported[name].default), name
        assert format_type(item.annotation) == format_type(imported[name].annotation), name
        assert choices(item.annotation) == choices(imported[name].annotation), name


def choices(annotation: Any) -> list[str]:
    kinds = (annotation, *typing.get_args(annotation))
    return [item.value for kind in kinds if isinstance(kind, enum.EnumMeta) for item in kind]


def test_the_class_is_imported_if_its_source_cannot_be_read(monkeypatch):
    def fail() -> None:
        raise SyntaxError

    monkeypatch.setattr(training_args, "read_fields", fail)
    training_fields.cache_clear()
    assert training_fields() == import_fields() | {
        name: item for name, item in training_fields().items() if name.startswith("early_stopping")
    }
    training_fields.cache_clear()


def test_defaults_are_those_of_transformers_except_for_ours():
    filled = fill_defaults({})
    for item in dataclasses.fields(TrainingArguments):
        if item.init and item.name not in RUN_DEFAULTS and item.default is not dataclasses.MISSING:
            assert filled[item.name] == item.default, item.name
    assert {item.name for item in dataclasses.fields(StoppingArgs)} <= filled.keys()
    assert fill_defaults({}, is_private=True)["max_grad_norm"] == 0.0


def test_written_values_are_kept_and_changed_defaults_are_found():
    filled = fill_defaults({"seed": 7, "logging_steps": 10})
    assert filled["seed"] == 7 and list(filled)[0] == "seed"
    assert fill_defaults(filled) == filled
    assert changed_values(filled) == {"seed": 7}


def test_a_config_with_all_defaults_is_read_as_an_equal_config(write, bases):
    config = read_config(write(bases))
    assert config.training_args["learning_rate"] == 1e-4
    assert config.training_args["seed"] == 42 and config.training_args["logging_steps"] == 10
    assert read_config(write(config.text, "config.py")) == config


@pytest.mark.parametrize("names", ["torch transformers peft bitsandbytes timm datasets accelerate"])
def test_reading_the_fields_imports_no_package(names):
    program = (
        "import sys; from mllm.config.training_args import read_fields\n"
        f"read_fields(); print(*sorted(set('{names}'.split()) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"max_steps": 3, "eval_strategy": "steps", "report_to": [], "logging_steps": 1},
        {"num_train_epochs": 2, "load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
        {"lr_scheduler_type": "cosine", "optim": "sgd", "warmup_steps": 0.1, "activation_checkpointing": True},
    ],
)
def test_the_trainer_receives_the_same_arguments_without_the_defaults(values, tmp_path):
    decided = {"output_dir": str(tmp_path), "use_cpu": True}
    filled = {key: value for key, value in fill_defaults(values).items() if not key.startswith("early_stopping")}
    written = {
        "report_to": ["tensorboard"],
        "logging_steps": 10,
        "save_only_model": False,
        "dataloader_persistent_workers": True,
    }
    expected = TrainingArguments(**{**written, **values, **decided})
    assert TrainingArguments(**{**filled, **decided}).to_dict() == expected.to_dict()
