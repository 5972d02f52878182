"""A split of FLARE without answers: its predictions are written without figures, and no training uses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mllm.dataset.public.flare import FLAREDataset
from mllm.errors import ConfigError
from mllm.pipeline.evaluate_model import main
from mllm.pipeline.finetune import main as finetune


@pytest.fixture
def config(write_config: Callable[..., str]) -> str:
    """A config whose test split has the questions of FLARE alone."""
    FLAREDataset.miniature(Path("flare"), 7)
    root = Path("flare/organized_dataset")
    (root / "training").rename(root / "testing")
    for path in root.glob("testing/*/*/*_questions_train.json"):
        rows = [{**row, "Answer": "", "Split": "test"} for row in json.loads(path.read_text())]
        path.with_name(path.name.replace("_train", "_test")).write_text(json.dumps(rows))
        path.unlink()
    split = f"dict(_delete_=True, type='FLAREDataset', data_path='{root}', split='testing')"
    metrics = "['balanced_accuracy', 'f1', 'mae']"
    return write_config(f"data_args = dict(test={split}, compute_metric={metrics}, gen_kwargs=dict(max_new_tokens=4))")


def test_an_evaluation_writes_the_answers_to_all_questions_and_no_figures(
    config: str, generating_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main([config, "--model", str(generating_base), "--out", "out"]) == 0
    assert "no metric is computed: the rows of 'test' have no answers" in caplog.text
    questions = [json.loads(path.read_text()) for path in Path("flare").rglob("*_questions_test.json")]
    entries = json.loads(Path("out/predictions.json").read_text())
    assert len(entries) == 7
    assert sorted(row["Question"] for row in entries) == sorted(row["Question"] for rows in questions for row in rows)
    predicted = [json.loads(line) for line in Path("out/predictions.jsonl").read_text().splitlines()]
    assert all(row["prediction"] for row in predicted) and {row["reference"] for row in predicted} == {""}
    reports = [row["prediction"].strip() for row in predicted if row["task"] == "report_generation"]
    assert [row["Answer"] for row in entries if row["TaskType"] == "Report_Generation"] == reports
    assert json.loads(Path("out/metrics.json").read_text())["figures"] == {}
    assert Path("out/report.html").is_file()


def test_a_training_run_with_such_a_split_is_refused(config: str) -> None:
    with pytest.raises(ConfigError, match=r"data_args\.test have no answers, which a training run needs"):
        finetune([config])
