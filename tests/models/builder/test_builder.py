"""Model types are found by name."""

from __future__ import annotations

import importlib

import pytest

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.family import FAMILIES, LazyFunction
from mllm.models.builder.builder import load_pretrained
from mllm.registry import MODELS

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)


def test_an_unknown_type_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'medgemma'"):
        load_pretrained(ModelArgs(type="medgema", model_name_or_path="x/y"), CPU)


def test_every_type_has_a_description() -> None:
    assert {"medgemma", "image-text", "shikra", "perceptionGPT"} <= set(MODELS.names())
    assert all(MODELS.describe(name).summary for name in MODELS.names())


def test_every_family_has_a_thin_builder_and_its_functions_exist() -> None:
    for family in FAMILIES:
        assert family.type in MODELS.names()
        for record in (family, family.vision or family):
            for value in [*vars(record).values(), *record.tiny.values()]:
                if isinstance(value, LazyFunction):
                    module, _, name = value.path.partition(":")
                    assert callable(vars(importlib.import_module(module))[name])
