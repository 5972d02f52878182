from __future__ import annotations

from mllm.config.origins import read_origins


def test_the_last_file_that_sets_a_key_takes_precedence(write):
    write("a = dict(x=1,\n    y=dict(z=1,\n    w=2))\nb = [dict(c=1),\n    dict(c=2)]\n", "base.py")
    origins = read_origins(write('_base_ = "base.py"\na = dict(\n    y=dict(\n        z=3))\n'))
    assert origins.of("a", "x") == "base.py:1"
    assert origins.of("a", "y", "z") == "run.py:4"
    assert origins.of("a", "y", "w") == "base.py:3"
    assert origins.of("b", "1", "c") == "base.py:5"
    assert origins.of("a", "y", "unknown") == "run.py:3"
    assert origins.of("unknown") == "run.py"


def test_origins_of_replaced_values_are_removed(write):
    write("a = dict(x=1, y=dict(z=1))\n", "base.py")
    origins = read_origins(write('_base_ = "base.py"\na = dict(_delete_=True,\n    y=2)\n'))
    assert origins.of("a", "x") == "run.py:2"
    assert ("a", "y", "z") not in origins.written
    assert origins.of("a", "y") == "run.py:3"


def test_names_of_the_file_and_single_keys(write):
    origins = read_origins(write("_inner = dict(\n    z=1)\na = dict(y=_inner)\na['w'] = 3\nc: dict = dict(k=1)\n"))
    assert origins.of("a", "y", "z") == "run.py:2"
    assert origins.of("a", "w") == "run.py:4"
    assert origins.of("a", "y") == "run.py:3"
    assert origins.of("c", "k") == "run.py:5"
