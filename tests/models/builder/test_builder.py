"""Model types are found by name."""

from __future__ import annotations

import importlib
import re

import pytest

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.builder.builder import load_pretrained
from mllm.registry import FAMILIES, MODELS

LATER = re.compile(r"Call `([\w.]+):(\w+)`\.")
"""Docstring of a function made by `mllm.registry.later`."""
CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)


def test_an_unknown_type_answers_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'medgemma'"):
        load_pretrained(ModelArgs(type="medgema", model_name_or_path="x/y"), CPU)


def test_every_type_has_a_sentence() -> None:
    assert {"medgemma", "image-text", "shikra", "perceptionGPT"} <= set(MODELS.module_dict)
    assert all(build.__doc__ for build in MODELS.module_dict.values())


def test_every_family_has_a_thin_builder_and_its_functions_exist() -> None:
    for family in FAMILIES:
        assert family.type in MODELS.module_dict
        for record in (family, family.vision or family):
            values = [*vars(record).values(), *record.tiny.values()]
            for path in [LATER.fullmatch(value.__doc__ or "") for value in values if callable(value)]:
                if path is not None:
                    assert callable(vars(importlib.import_module(path[1]))[path[2]])
