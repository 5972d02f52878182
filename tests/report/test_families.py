"""Table of the architectures, and the lists of those without a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from transformers.models.auto import modeling_auto

from mllm.config.hardware import CHECKOUT
from mllm.pipeline.show import main
from mllm.report import families
from mllm.report.families import RESULTS, TABLES, family_document, installed_architectures


def test_the_document_is_current() -> None:
    path = CHECKOUT / "config" / "FAMILIES.md"
    command = "python mllm/pipeline/show.py families > config/FAMILIES.md"
    assert path.read_text(encoding="utf-8") == family_document(), f"run: {command}"


def test_the_installed_architectures_are_those_of_the_imported_package() -> None:
    expected = {kind: set(vars(modeling_auto)[table]) for table, kind in TABLES.items()}
    assert installed_architectures() == expected


def test_every_installed_architecture_is_in_the_table() -> None:
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))
    if transformers.__version__ != recorded["transformers"]:
        pytest.skip("the table is about another version of transformers")
    tested = {name.partition(" ")[0] for name in recorded["families"]}
    assert {kind: names - tested for kind, names in installed_architectures().items()} == dict.fromkeys(
        TABLES.values(), set()
    )


def test_an_architecture_is_in_the_table_or_in_the_lists(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))
    del recorded["families"]["blt"]
    (tmp_path / "results.json").write_text(json.dumps(recorded), encoding="utf-8")
    monkeypatch.setattr(families, "RESULTS", tmp_path / "results.json")
    assert main(["families", "--untested"]) == 0
    table, lists = capsys.readouterr().out.split("Installed and not tested:")
    assert "| `llava` | `image-text` | yes | yes | yes |" in table
    assert "| `bert` | `causal-lm` | refused: attends to later tokens (answers) |" in table
    assert "`blt`" not in table and " blt" in lists and " llava" not in lists
