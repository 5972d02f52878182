"""Treatment of every field of `transformers.TrainingArguments`."""

from __future__ import annotations

import dataclasses

from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import OptimizerNames

from mllm.config.training_support import MAPPED, REFUSED, REFUSED_OPTIMIZERS, SUPPORTED, TRACKERS, refusal


def test_every_field_of_the_installed_transformers_is_in_exactly_one_table():
    fields = {item.name for item in dataclasses.fields(TrainingArguments) if item.init}
    tables = [*SUPPORTED, *MAPPED, *REFUSED]
    assert sorted(tables) == sorted(set(tables)), "a field is in two tables"
    assert fields - set(tables) == set(), "look at these fields of transformers, and enter them into a table"
    assert set(tables) - fields <= {"gradient_checkpointing", "gradient_checkpointing_kwargs"}


def test_a_field_in_no_table_is_refused():
    assert refusal("learning_rate") is None and refusal("output_dir") is None
    assert "new in this version" in str(refusal("a_field_of_tomorrow"))


def test_the_named_optimizers_and_trackers_exist():
    assert set(REFUSED_OPTIMIZERS) <= {item.value for item in OptimizerNames}
    assert set(TRACKERS) <= set(INTEGRATION_TO_CALLBACK)
