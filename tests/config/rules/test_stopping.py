"""Early stopping is refused without a validation loss."""

from __future__ import annotations

import pytest

from mllm.config.hardware import Hardware
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.errors import ConfigError

CPU = Hardware("cpu", "x86_64", None, 0, 0, 8 << 30, 2)
VALIDATION = 'data_args = dict(validation=dict(type="Phantoms"))\n'


@pytest.fixture
def run(write, bases):
    return lambda lines: apply_rules(read_config(write(bases + lines + "\n")), CPU)[0]


def test_early_stopping_with_a_validation_loss_is_accepted(run):
    arguments = 'training_args = dict(early_stopping_patience=2, early_stopping_threshold=0.01, eval_strategy="epoch")'
    assert run(VALIDATION + arguments).training_args["early_stopping_patience"] == 2


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('training_args = dict(early_stopping_patience=2, eval_strategy="epoch")', "data_args.validation is None"),
        (
            VALIDATION + "training_args = dict(early_stopping_patience=2)",
            r"run\.py:3: .* eval_strategy='no' computes none",
        ),
        ("training_args = dict(early_stopping_threshold=0.1)", "has no effect without early_stopping_patience"),
        ("training_args = dict(early_stopping_patience=0)", "early_stopping_patience must be at least 1, not 0"),
        ("training_args = dict(early_stopping_patience=1.5)", "early_stopping_patience must be an integer"),
        ("training_args = dict(early_stoping_patience=1)", "did you mean 'early_stopping_patience'"),
    ],
)
def test_early_stopping_without_a_validation_loss_is_refused(run, lines: str, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        run(lines)
