"""The key `trainable`: its forms, and the parts of a model that they train."""

from __future__ import annotations

from typing import Any

import pytest

from mllm.config.defaults import make_model_args
from mllm.config.reading import read_config
from mllm.config.trainable import Parts, trained_parts
from mllm.errors import ConfigError


def parts(type: str, **values: Any) -> Parts:
    return trained_parts(make_model_args(type, model_name_or_path="ckpt/x", **values))


@pytest.mark.parametrize(
    ("type", "values", "expected"),
    [
        ("medgemma", {}, Parts("language", {})),
        ("medgemma", {"lora_target": "all"}, Parts("all", {})),
        ("shikra", {}, Parts("language", {"projector": None})),
        ("shikra", {"freeze_backbone": True}, Parts(None, {"projector": None})),
        ("shikra", {"freeze_mm_mlp_adapter": True}, Parts("language", {})),
        ("medsiglip", {"part": "vision", "train_vision": True}, Parts(None, {"vision": None})),
        ("medgemma", {"trainable": {"projector": "full"}}, Parts(None, {"projector": None})),
        ("shikra", {"trainable": {"language": "lora"}}, Parts("language", {})),
        ("medgemma", {"trainable": {"vision": "lora"}}, Parts("vision", {})),
        ("medgemma", {"trainable": {"vision": "lora", "language": "lora"}}, Parts("all", {})),
        (
            "medgemma",
            {"trainable": {"language": {"last_layers": 4}, "vision": "lora"}},
            Parts("vision", {"language": 4}),
        ),
        (
            "medgemma",
            {"trainable": {"language": "lora", "vision": "full"}, "lora_target": ".*q_proj"},
            Parts(".*q_proj", {"vision": None}),
        ),
    ],
)
def test_the_parts_that_train(type: str, values: dict[str, Any], expected: Parts) -> None:
    assert parts(type, **values) == expected


def test_full_names_all_parts_that_a_model_can_have() -> None:
    full = parts("causal-lm", trainable="full")
    assert (full.lora_target, set(full.full), full.named) == (None, {"language", "vision", "projector"}, False)
    assert full.whole_language and not parts("medgemma", trainable={"language": {"last_layers": 1}}).whole_language


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("'ful'", "model_args.trainable does not know 'ful': did you mean 'full'?"),
        ("3", "model_args.trainable must be text or a dict, not 3"),
        ("{}", "model_args.trainable names no part of the model: set it to {'language': 'lora', 'vision': 'full', "),
        ("dict(langage='full')", "model_args.trainable does not know the part 'langage': did you mean 'language'?"),
        ("dict(projector='lora')", "model_args.trainable['projector'] must be 'full', not 'lora'"),
        (
            "dict(vision='frozen')",
            "model_args.trainable['vision'] must be 'lora', 'full' or {'last_layers': N} with N ",
        ),
        ("dict(vision=dict(last_layers=0))", "model_args.trainable['vision'] must be 'lora', 'full' or "),
        ("dict(vision=dict(last_layers=True))", "model_args.trainable['vision'] must be 'lora', 'full' or "),
        ("dict(vision=dict(layers=2))", "model_args.trainable['vision'] must be 'lora', 'full' or "),
    ],
)
def test_other_values_are_refused(write, bases, value: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(write(f"{bases}model_args = dict(trainable={value})\n"))
    assert str(caught.value).startswith(f"run.py:2: {problem}")
