"""Tests of the exports and results from before a run was resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mllm.export.facts import Facts, Split, write_facts
from mllm.export.former import former_exports, remove_former_results

FACTS = Facts("x/base", data={"train": Split("VQADataset", 8)}, training={"lora_r": 4, "betas": (0.9, 0.99)}, updates=4)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_facts(tmp_path, FACTS)
    return tmp_path


def _export(run: Path, name: str, facts: Facts) -> Path:
    folder = run / name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_facts(folder, facts)
    return folder


def test_an_export_of_the_same_model_is_returned(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    merged = replace(FACTS, training={**FACTS.training, "merged adapters": 1}, figures={"accuracy": {"accuracy": 0.5}})
    folder = _export(run, "merged", merged)
    written = _export(run, "adapter", FACTS)
    (run / "checkpoint-4").mkdir()
    assert former_exports(run, [written]) == [folder]
    assert not caplog.messages


@pytest.mark.parametrize(
    "change", [{"updates": 2}, {"training": {"lora_r": 8}}, {"data": {"train": Split("VQADataset", 9)}}]
)
def test_an_export_of_an_earlier_model_is_named_in_a_warning(
    run: Path, change: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    folder = _export(run, "merged", replace(FACTS, **change))  # type: ignore[arg-type]
    assert former_exports(run, []) == []
    (message,) = caplog.messages
    assert message.startswith(f"{folder} contains the model after {change.get('updates', 4)} updates")


def test_predictions_and_figures_of_an_earlier_model_are_removed(run: Path) -> None:
    for name in ("metrics.json", "predictions.jsonl", "agreement.png", "training_log.json"):
        (run / name).write_text("{}")
    remove_former_results(run)
    assert sorted(path.name for path in run.iterdir()) == ["facts.json", "training_log.json"]
