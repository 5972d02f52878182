from __future__ import annotations

import pytest

from mllm.config.defaults import make_model_args, with_defaults
from mllm.config.schema import ModelArgs


@pytest.mark.parametrize(
    ("type", "square", "fuses", "heads"),
    [
        ("medgemma", False, False, set()),
        ("image-text", False, False, set()),
        ("shikra", True, False, set()),
        ("perceptionGPT", True, True, {"box", "mask"}),
    ],
)
def test_absent_keys_get_the_default_of_the_type(type, square, fuses, heads):
    args = with_defaults(ModelArgs(type, "x"))
    assert (args.pad_to_square, args.fuse_vision_layers, set(args.heads)) == (square, fuses, heads)
    assert with_defaults(args) == args


def test_values_of_a_config_are_not_replaced_by_defaults():
    heads = {"box": {"type": "BoxHead"}}
    args = make_model_args(
        "perceptionGPT", model_name_or_path="x", heads=heads, pad_to_square=False, fuse_vision_layers=False
    )
    assert with_defaults(args) == args
    assert with_defaults(ModelArgs("medgemma", "x", pad_to_square=True)).pad_to_square is True
