"""Dicts with a type: errors in their options name the line, before weights are loaded."""

from __future__ import annotations

import pytest

from mllm.config.reading import read_config
from mllm.errors import ConfigError

TYPED = '''
from __future__ import annotations
from typing import TYPE_CHECKING
from mllm.registry import OBJECTIVES
if TYPE_CHECKING:
    from nowhere import Nothing

@OBJECTIVES.register_module()
class NamesNoFile:
    """Its annotations cannot be read."""
    def __init__(self, weight: Nothing = None) -> None: ...
'''


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "data_args = dict(train=dict(size='many'))",
            "run.py:2: data_args.train.size must be an integer, not 'many'",
        ),
        (
            "data_args = dict(\n    train=dict(\n        image_size=2.5))",
            "run.py:4: data_args.train.image_size must be an integer, not 2.5",
        ),
        (
            "data_args = dict(train=dict(_delete_=True, type='Rows', data_path=5))",
            "run.py:2: data_args.train.data_path must be text, not 5",
        ),
        (
            "data_args = dict(train=dict(_delete_=True, type='Rows', data_path='a', image_folder=['b']))",
            "run.py:2: data_args.train.image_folder must be text or None, not ['b']",
        ),
        (
            "data_args = dict(train=dict(_delete_=True, type='Rows', data_path='a', transforms=[\n"
            "    dict(type='Flip', probability='often')]))",
            "run.py:3: data_args.train.transforms.0.probability must be a number, not 'often'",
        ),
        (
            "objectives = dict(next_token=dict(type='NextToken', weight='big'))",
            "run.py:2: objectives.next_token.weight must be a number or a dict, not 'big'",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(write, bases, lines, expected):
    with pytest.raises(ConfigError) as excinfo:
        read_config(write(bases + lines + "\n"))
    assert str(excinfo.value) == expected


def test_an_entry_whose_annotations_cannot_be_read_takes_any_value(write, bases, tmp_path, monkeypatch):
    (tmp_path / "typed.py").write_text(TYPED)
    monkeypatch.syspath_prepend(tmp_path)
    lines = (
        "custom_imports = dict(imports=['typed'])\nobjectives = dict(other=dict(type='NamesNoFile', weight='much'))\n"
    )
    assert read_config(write(bases + lines)).objectives["other"]["weight"] == "much"
