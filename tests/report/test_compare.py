"""Comparison of runs against paired differences computed by hand, and its messages."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scores import score

from mllm.engine.evaluation import mark_fields
from mllm.engine.predictions import answers_of
from mllm.errors import ConfigError
from mllm.metrics.grounding import Rec, Res
from mllm.pipeline.compare import main
from mllm.report.compare import compare
from mllm.structures import Answer, Mark

REFERENCES = ["yes", "no"] * 30


def write_run(folder: Path, answers: list[str], references: list[str] = REFERENCES, **fields: Any) -> Path:
    """Write the predictions of a run, two samples for each patient."""
    folder.mkdir()
    rows = [
        {"source": f"data/rows.jsonl, line {i + 1}", "patient": f"p{i // 2}", "question": "?", "reference": reference}
        | {"prediction": answer}
        | fields
        for i, (answer, reference) in enumerate(zip(answers, references, strict=True))
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metrics.json").write_text(json.dumps({"figures": {"accuracy": {"accuracy": 0.5}}}))
    return folder


def test_differences_are_paired_by_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run corrects 12 answers of 6 patients; both runs are wrong for the same 10 other patients."""
    other = {"yes": "no", "no": "yes"}
    first = [other[reference] if i // 2 < 16 else reference for i, reference in enumerate(REFERENCES)]
    second = [r if i // 2 < 6 else a for i, (a, r) in enumerate(zip(first, REFERENCES, strict=True))]
    folders = [write_run(tmp_path / name, answers) for name, answers in (("a", first), ("b", second))]
    assert main([*map(str, folders), "--out", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["samples"], result["patients"]) == (60, 30)
    row = result["rows"][0]
    assert (row["metric"], row["figure"], row["values"]) == ("accuracy", "accuracy", pytest.approx([28 / 60, 40 / 60]))
    assert row["differences"] == pytest.approx([12 / 60])
    rng = np.random.default_rng(5)
    drawn = (rng.integers(0, 30, (4000, 30)) < 6).mean(axis=1)
    assert row["difference_limits"][0] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.035)
    unpaired = np.subtract(*row["limits"][1][::-1]), np.subtract(*row["limits"][0][::-1])
    assert np.subtract(*row["difference_limits"][0][::-1]) < np.hypot(*unpaired), "pairing makes the interval narrower"
    shown = capsys.readouterr().out
    assert f"run 1: {folders[0]}" in shown and "60 common samples of 30 patients" in shown
    assert "+0.2000 [+0.0" in shown.split("accuracy")[2]


def test_equal_runs_differ_by_zero_and_only_common_samples_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = write_run(tmp_path / "a", REFERENCES)
    part = write_run(tmp_path / "b", REFERENCES[:20], REFERENCES[:20], source_note="")
    text = (part / "predictions.jsonl").read_text().replace("data/rows.jsonl", "/elsewhere/rows.jsonl")
    (part / "predictions.jsonl").write_text(text)
    with caplog.at_level(logging.WARNING, logger="mllm"):
        result = compare([whole, part, whole], ["accuracy", "f1"])
    assert (result.samples, result.patients) == (20, 10)
    assert f"{whole}: 20 of 60 samples are in all runs" in caplog.text
    for row in result.rows:
        assert row.differences == [0, 0] and row.difference_limits == [(0, 0), (0, 0)]
    assert {row.metric for row in result.rows} == {"accuracy", "f1"}


def test_runs_are_compared_by_stratum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run corrects the answers about women, who have 40 of the 60 samples."""
    other = {"yes": "no", "no": "yes"}
    first = write_run(tmp_path / "a", [other[reference] for reference in REFERENCES])
    second = write_run(tmp_path / "b", [r if i < 40 else other[r] for i, r in enumerate(REFERENCES)])
    for folder in (first, second):
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        for i, row in enumerate(rows):
            row |= {"columns": {"sex": "F" if i < 40 else "M"}, "modality": "CT"}
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(first), str(second), "--by", "sex", "modality", "--out", str(tmp_path / "out.json")]) == 0
    strata = json.loads((tmp_path / "out.json").read_text())["strata"]
    parts = [(part["column"], part["value"], part["samples"], part["patients"]) for part in strata]
    assert parts == [("sex", "F", 40, 20), ("sex", "M", 20, 10), ("modality", "CT", 60, 30)]
    assert [part["rows"][0]["differences"] for part in strata] == [[1], [0], [pytest.approx(40 / 60)]]
    assert strata[0]["rows"][0]["difference_limits"] == [[1, 1]]
    assert "sex: F, 40 samples of 20 patients\nmetric" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="have no 'scanner'; evaluate the run again with --by scanner"):
        compare([first, second], by=["scanner"])


def test_average_precision_and_measures_have_paired_intervals(tmp_path: Path) -> None:
    """The second run predicts EF without error, and the boxes of half of the patients."""
    folders = []
    for name, error, found in (("a", 4.0, 0), ("b", 0.0, 30)):
        run = write_run(tmp_path / name, ["" for _ in REFERENCES], ["box" for _ in REFERENCES])
        rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
        for i, row in enumerate(rows):
            row |= {"reference_boxes": [[5, 5, 20, 20]], "reference_measures": {"EF": 40.0 + i}}
            row |= {"boxes": [[5, 5, 20, 20]] if i < found else [], "measures": {"EF": 40.0 + i + error}}
        (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        folders.append(run)
    rows = {row.figure: row for row in compare(folders, ["measures", "coco_ap"]).rows}
    assert rows["EF_mae"].differences == [pytest.approx(-4)]
    assert rows["EF_mae"].difference_limits == [pytest.approx((-4, -4))]
    assert rows["box_recall@0.5"].differences == [0.5]
    low, high = rows["box_AP"].difference_limits[0] or (0, 0)
    assert 0 < low < rows["box_AP"].differences[0] < high < 1


def test_samples_without_patients_are_not_called_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a", REFERENCES, patient=None)
    assert main([str(run), str(run)]) == 0
    shown = capsys.readouterr().out
    assert "60 common samples; 95 % intervals in brackets by bootstrap over samples, grouped by patient" in shown
    assert " patients" not in shown


def test_a_metric_has_the_rows_of_the_figures_that_its_references_define(tmp_path: Path) -> None:
    """The F1 of yes is a figure of `short_answer` only if all references are yes or no."""
    for name, references, figures in (
        ("binary", REFERENCES, ["accuracy", "f1"]),
        ("open", ["left lung", "right lung"] * 30, ["accuracy"]),
    ):
        run = write_run(tmp_path / name, references, references)
        assert [row.figure for row in compare([run, run], ["short_answer"]).rows] == figures


def test_a_difference_of_undefined_figures_is_undefined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", [""] * 60, reference_boxes=[[1.0, 2.0, 9.0, 8.0]])
    assert main([str(run), str(run), "--metric", "coco_ap"]) == 0
    assert "nan" not in (shown := capsys.readouterr().out) and "undefined" in shown


def test_runs_that_cannot_be_compared_are_refused_in_one_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", REFERENCES)
    other = write_run(tmp_path / "b", REFERENCES)
    (other / "predictions.jsonl").write_text(json.dumps({"source": "x", "reference": "a", "prediction": "b"}) + "\n")
    cases: list[tuple[list[str], str]] = [
        ([str(run)], "needs two runs or more"),
        ([str(run), str(other)], "a and .*b have no sample in common: compare evaluations of the same split"),
        ([str(run), str(tmp_path / "c")], "c/predictions.jsonl does not exist"),
        (
            [str(run), str(run), "--metric", "rec"],
            "metric 'rec' cannot be computed, because none of the 60 common samples has a box or a mask in its answer; "
            "metrics that apply are accuracy",
        ),
        (
            [str(run), str(run), "--metric", "auroc"],
            "metric 'auroc' needs the probabilities of options, which the answers in .*a do not have, because they "
            "were generated: evaluate it again with --cfg-options data_args.gen_kwargs.scoring=options",
        ),
        ([str(run), str(run), "--metric", "acuracy"], "unknown metric 'acuracy'.*did you mean 'accuracy'"),
    ]
    for arguments, message in cases:
        with pytest.raises(ConfigError, match=message):
            main(arguments)
    (other / "predictions.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="predictions.jsonl:1 has no source, reference and prediction"):
        compare([run, other])
    (run / "metrics.json").write_text('{"figures": {"measures": {}}}')
    with pytest.raises(ConfigError, match="have no metric in common: name one with --metric"):
        compare([run, write_run(tmp_path / "d", REFERENCES)])


def test_marks_of_rows_give_the_figures_of_the_answers() -> None:
    """Boxes, masks with and without a box of their own, points, and images of a sample."""
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 2:9, 3:12], masks[1, 5:15, 10:28] = True, True
    true = Answer("", (Mark(mask=masks[0]), Mark(mask=masks[1]), Mark(box=(1, 2, 9.5, 12), image=1)), group="p")
    said = Answer("", (Mark(box=(3, 2, 11, 9), mask=masks[0]), Mark(box=(2, 2, 9, 12), image=1), Mark(point=(4, 5))))
    row = {"source": "s", "question": "A: x B: y", "reference": "B", "prediction": "A", "patient": "p", "task": "t"}
    prediction, reference = answers_of({**row, **mark_fields(said), **mark_fields(true, "reference_")})
    assert (reference.group, reference.task, reference.options) == ("p", "t", {"A": "x", "B": "y"})
    for metric in (Rec, Res):
        assert score(metric, [prediction], [reference]) == score(metric, [said], [true])
    assert [mark.point for mark in prediction.marks if mark.point] == [(4, 5)]


def test_runs_of_many_rows_are_compared_to_the_last_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllm.metrics.scoring.FEW", 25)  # 60 rows are two parts and ten rows
    wrong = ["no" if i >= 50 and answer == "yes" else answer for i, answer in enumerate(REFERENCES)]
    folders = [write_run(tmp_path / name, answers) for name, answers in (("a", REFERENCES), ("b", wrong))]
    rows = compare(folders, ["accuracy", "exact_match", "token_f1", "f1"]).rows
    for row in rows:
        if row.figure in ("accuracy", "exact_match", "token_f1"):
            assert row.values == pytest.approx([1, 55 / 60])
    assert {row.metric for row in rows} == {"accuracy", "exact_match", "token_f1", "f1"}
