"""Tests of `facts.json`: round trip, unknown keys, missing and damaged files."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from mllm.errors import ConfigError
from mllm.export.facts import Facts, Split, current_versions, read_facts, write_facts, write_metrics

FACTS = Facts(
    base="google/medgemma-4b-it",
    settings={"type": "medgemma", "image_size": None, "system": "a | b"},
    data={"train": Split("VQADataset", 100), "test": Split("VQADataset", 10)},
    training={"lora_r": 16, "learning_rate": 2e-4},
    updates=300,
    figures={"accuracy": {"accuracy": 0.91234567, "chance": 0.5}, "rec": {"accuracy": 0.25}},
    privacy={"guarantee": "(3, 1e-5)", "epsilon_spent": 3.0, "warnings": []},
    versions={"python": "3.12.0", "packages": {"torch": "2.9.0"}, "git_commit": None},
)


def test_facts_survive_a_round_trip(tmp_path: Path) -> None:
    write_facts(tmp_path, FACTS)
    assert read_facts(tmp_path) == FACTS
    assert os.listdir(tmp_path) == ["facts.json"]


def test_facts_with_defaults_survive_a_round_trip(tmp_path: Path) -> None:
    write_facts(tmp_path, Facts("x/y"))
    assert read_facts(tmp_path) == Facts("x/y")


def test_keys_of_later_versions_are_ignored(tmp_path: Path) -> None:
    write_facts(tmp_path, FACTS)
    values = json.loads((tmp_path / "facts.json").read_text())
    values["data"]["train"]["sha256"] = "0"
    (tmp_path / "facts.json").write_text(json.dumps(values | {"energy": 1}))
    assert read_facts(tmp_path) == FACTS


def test_a_folder_without_the_file_has_no_facts(tmp_path: Path) -> None:
    assert read_facts(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"base": "a", "data": {"train": 3}}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "facts.json").write_text(text)
    with pytest.raises(ConfigError, match=r"facts\.json cannot be read .*export the run again"):
        read_facts(tmp_path)


def test_a_non_finite_figure_becomes_unknown(tmp_path: Path) -> None:
    write_facts(tmp_path, Facts("x/y", figures={"measures": {"EF/r": math.nan}}))
    facts = read_facts(tmp_path)
    assert facts is not None
    assert facts.figures == {"measures": {"EF/r": None}}


def test_figures_form_one_table() -> None:
    assert FACTS.named_figures() == {"updates": 300, "accuracy": 0.91234567, "chance": 0.5, "rec/accuracy": 0.25}


def test_metrics_are_rendered_from_facts(tmp_path: Path) -> None:
    write_metrics(tmp_path, FACTS, {})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"figures": FACTS.figures}


def test_versions_contain_no_path(tmp_path: Path) -> None:
    versions = current_versions()
    assert set(versions) == {"python", "packages", "git_commit"}
    assert versions["packages"]["torch"]
    assert str(Path.home()) not in json.dumps(versions)
