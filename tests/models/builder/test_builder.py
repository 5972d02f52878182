"""Model types are found by name."""

from __future__ import annotations

import pytest

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.builder.builder import load_pretrained
from mllm.registry import MODELS

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)


def test_an_unknown_type_answers_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'medgemma'"):
        load_pretrained(ModelArgs(type="medgema", model_name_or_path="x/y"), CPU)


def test_every_type_has_a_sentence() -> None:
    assert {"medgemma", "image-text", "shikra", "perceptionGPT"} <= set(MODELS.names())
    assert all(MODELS.describe(name).summary for name in MODELS.names())
