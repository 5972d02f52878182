from __future__ import annotations

import ast
import dataclasses
import inspect

import pytest

from mllm.config import schema
from mllm.config.reading import read_config
from mllm.config.schema import DataArgs, ModelArgs, RunConfig


@pytest.mark.parametrize("kind", [ModelArgs, DataArgs])
def test_every_key_has_a_description(kind):
    body = ast.parse(inspect.getsource(kind)).body[0].body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            assert isinstance(following, ast.Expr) and isinstance(following.value.value, str), ast.unparse(statement)
            assert following.value.value.endswith("."), ast.unparse(statement)


def test_the_common_keys_keep_their_names_and_order():
    names = [item.name for item in dataclasses.fields(ModelArgs)]
    assert names[:9] == [
        *("type", "model_name_or_path", "adapter_path", "merge_lora", "load_in_4bit", "load_in_8bit"),
        *("lora_r", "lora_alpha", "lora_dropout"),
    ]
    assert {"lora_target", "image_size", "image_token_len", "max_length"} <= set(names)
    assert tuple(item.name for item in dataclasses.fields(DataArgs))[:3] == schema.SPLITS


def test_a_config_is_frozen(write, bases):
    config = read_config(write(bases))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.tiny = True
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model_args.lora_r = 3


def test_equality_ignores_the_file(write, bases):
    one, other = read_config(write(bases, "a/run.py".replace("a/", ""))), read_config(write(bases, "other.py"))
    assert one != other
    assert one == dataclasses.replace(other, name="run")
    assert isinstance(one, RunConfig)


def test_replaced_refuses_names_that_do_not_exist(write, bases):
    config = read_config(write(bases))
    with pytest.raises(TypeError):
        config.replaced(lora_r=3)
    with pytest.raises(TypeError):
        config.replaced(**{"model_args.rank": 3})
