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
def test_a_type_decides_where_a_config_says_nothing(type, square, fuses, heads):
    args = with_defaults(ModelArgs(type, "x"))
    assert (args.pad_to_square, args.fuse_vision_layers, set(args.heads)) == (square, fuses, heads)
    assert with_defaults(args) == args


def test_what_a_config_says_stays():
    heads = {"box": {"type": "BoxHead"}}
    args = make_model_args(
        "perceptionGPT", model_name_or_path="x", heads=heads, pad_to_square=False, fuse_vision_layers=False
    )
    assert with_defaults(args) == args
    assert with_defaults(ModelArgs("medgemma", "x", pad_to_square=True)).pad_to_square is True
