"""Table of the architectures, and the lists of those without a test."""

from __future__ import annotations

import pytest
from transformers.models.auto import modeling_auto

from mllm.config.hardware import CHECKOUT
from mllm.pipeline.show import main
from mllm.report.families import TABLES, family_document, installed_architectures


def test_the_document_is_current() -> None:
    path = CHECKOUT / "config" / "FAMILIES.md"
    command = "python mllm/pipeline/show.py families > config/FAMILIES.md"
    assert path.read_text(encoding="utf-8") == family_document(), f"run: {command}"


def test_the_installed_architectures_are_those_of_the_imported_package() -> None:
    expected = {kind: set(vars(modeling_auto)[table]) for table, kind in TABLES.items()}
    assert installed_architectures() == expected


def test_an_architecture_is_in_the_table_or_in_the_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "--untested"]) == 0
    table, lists = capsys.readouterr().out.split("Installed and not tested:")
    assert "| `llava` | `image-text` | yes | yes | yes |" in table
    assert "`blt`" not in table and " blt," in lists and " llava," not in lists
