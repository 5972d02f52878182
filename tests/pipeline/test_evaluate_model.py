"""A split is evaluated; the figures can be computed again from the written rows."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scores import points, score

from mllm.engine.unfinished import UnfinishedPredictions
from mllm.errors import ConfigError, DataError
from mllm.metrics.classification import Accuracy
from mllm.pipeline.evaluate_model import main

DATA = "test=dict(_delete_=True, type='VQADataset', data_path='rows.jsonl', image_folder='pictures')"
MORE = f"data_args = dict({DATA}, gen_kwargs=dict(max_new_tokens=4))"


@pytest.fixture
def run(write_config: Callable[..., str], write_rows: Callable[..., None], generating_adapter: Path) -> tuple[str, str]:
    """A config whose test split has five rows, and a run folder with an adapter."""
    write_rows({"image": "0.png", "question": "Which?", "answer": "MRI"})
    shutil.copytree(generating_adapter, "exp/old/adapter")
    return write_config(MORE), "exp/old/adapter"


def read(folder: str) -> tuple[dict, list[dict]]:  # type: ignore[type-arg]
    rows = [json.loads(line) for line in (Path(folder) / "predictions.jsonl").read_text().splitlines()]
    return json.loads((Path(folder) / "metrics.json").read_text()), rows


def test_figures_rows_settings_and_versions_are_written_next_to_the_adapter(
    run: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, adapter = run
    assert main([config, "--adapter", adapter]) == 0
    values, rows = read("exp/old/evaluation-test")
    assert [(row["question"], row["reference"]) for row in rows] == [("<image> What?", "A scan.")] * 4 + [
        ("<image> Which?", "MRI")
    ]
    assert all(row["prediction"] for row in rows)
    assert [row["images"] for row in rows] == [[f"{number}.png"] for number in (0, 1, 2, 3, 0)]
    again = score(Accuracy, [row["prediction"] for row in rows], [row["reference"] for row in rows])
    assert points(values["figures"]["accuracy"]) == again
    assert values["counts"] == {
        "answers": 5,
        "skipped": 0,
        "unreadable": 0,
        "tokens": sum(row["tokens"] for row in rows),
    }
    assert values["settings"]["gen_kwargs"] == {"max_new_tokens": 4}
    assert values["settings"]["data"]["data_path"] == "rows.jsonl"
    assert values["model"]["adapter_path"] == adapter
    weights = (Path(adapter) / "adapter_model.safetensors").read_bytes()
    assert values["adapter_sha256"] == {"adapter_model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert {"packages", "git"} <= set(values["environment"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["metric", "figure", "value"]
    assert ["accuracy", "samples", "5"] in [line.split() for line in lines]


def test_nothing_is_overwritten(run: tuple[str, str]) -> None:
    config, _ = run
    options = [config, "--adapter", "exp/old", "--cfg-options", "data_args.gen_kwargs.max_new_tokens=1"]
    for _ in range(2):
        assert main(options) == 0
    assert read("exp/old/evaluation-test")[1] == read("exp/old/evaluation-test-2")[1]
    with pytest.raises(ConfigError, match="evaluation-test exists and is not an empty folder"):
        main([*options, "--out", "exp/old/evaluation-test"])
    assert sorted(path.name for path in Path("exp/old").iterdir()) == [
        "adapter",
        "evaluation-test",
        "evaluation-test-2",
    ]


def test_a_base_model_is_evaluated_with_metrics_of_the_command_line(
    run: tuple[str, str], generating_base: Path
) -> None:
    config, adapter = run
    options = ["--metric", "short_answer", "accuracy", "--out", "out"]
    assert main([config, "--model", str(generating_base), *options]) == 0
    values, rows = read("out")
    assert list(values["figures"]) == ["short_answer", "accuracy"]
    assert values["figures"]["short_answer"]["failed"] == 5
    assert values["model"]["adapter_path"] is None
    assert values["model"]["image_token_len"] == 16, "the encoding is the one of the config"
    assert values["adapter_sha256"] == {}
    main([config, "--adapter", adapter])
    assert [row["prediction"] for row in read("exp/old/evaluation-test")[1]] != [row["prediction"] for row in rows]


def test_data_of_other_splits_may_be_absent(run: tuple[str, str], write_config: Callable[..., str]) -> None:
    absent = "dict(_delete_=True, type='VQADataset', data_path='absent.jsonl')"
    config = write_config(
        f"data_args = dict(train={absent}, validation={DATA.split('=', 1)[1]}, test={absent})", "b.py"
    )
    assert main([config, "--adapter", run[1], "--split", "validation"]) == 0
    assert len(read("exp/old/evaluation-validation")[1]) == 5
    with pytest.raises(DataError, match="absent"):
        main([config, "--adapter", run[1]])


def test_bad_rows_are_counted_or_raise_and_leave_no_files(
    run: tuple[str, str], write_config: Callable[..., str], write_rows: Callable[..., None]
) -> None:
    write_rows({"image": "absent.png", "question": "Which?", "answer": "MRI"})
    with pytest.raises(DataError, match=r"rows\.jsonl, line 5"):
        main([run[0], "--adapter", run[1]])
    assert not Path("exp/old/evaluation-test").exists()
    assert main([run[0], "--adapter", run[1], "--cfg-options", "data_args.on_error=skip"]) == 0
    values, rows = read("exp/old/evaluation-test")
    assert (len(rows), values["counts"]["skipped"]) == (4, 1)
    assert "absent.png" in values["skipped"][0]
    Path("rows.jsonl").write_text('{"image": "absent.png", "question": "Which?", "answer": "MRI"}\n')
    with pytest.raises(DataError, match="no row of the test split could be used"):
        main([run[0], "--adapter", run[1], "--cfg-options", "data_args.on_error=skip"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "acuracy"], "did you mean 'accuracy'"),
        (["--cfg-options", "data_args.compute_metric=None"], "add --metric NAME, one of accuracy"),
        (["--cfg-options", "data_args.test=None"], "no split 'test'"),
        (
            ["--metric", "measures"],
            "^--metric: metric 'measures' cannot be computed, because none of the 5 rows of test",
        ),
    ],
)
def test_invalid_options_are_refused_before_a_model_is_loaded(
    run: tuple[str, str], monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr("mllm.predict.evaluate.load_for_answers", None)
    with pytest.raises(ConfigError, match=message):
        main([run[0], "--adapter", run[1], *options])


def test_figures_by_column_are_written_and_unknown_columns_refused(
    run: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    rows = [{**row, "sex": "FM"[i % 2], "age": 30 + i, "modality": "CT"} for i, row in enumerate(rows)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([run[0], "--adapter", run[1], "--by", "sex", "age:32", "--out", "out"]) == 0
    values, written = read("out")
    assert [row["columns"] for row in written] == [{"sex": "FM"[i % 2], "age": 30 + i} for i in range(5)]
    assert {row["modality"] for row in written} == {"CT"}
    assert {name: part["samples"] for name, part in values["strata"]["sex"].items()} == {"F": 3, "M": 2}
    assert {name: part["samples"] for name, part in values["strata"]["age"].items()} == {"age < 32": 2, "age >= 32": 3}
    assert "too few for an interval" in capsys.readouterr().out
    monkeypatch.setattr("mllm.predict.evaluate.load_for_answers", None)
    with pytest.raises(ConfigError, match="--by: no row of test has a value of 'sexx': did you mean 'sex'"):
        main([run[0], "--adapter", run[1], "--by", "sexx"])
    with pytest.raises(
        ConfigError, match=r"data_args.strata: no row of test has a value of 'vendor_xyz'; known are age, "
    ):
        main([run[0], "--adapter", run[1], "--cfg-options", "data_args.strata=vendor_xyz"])


def test_a_killed_evaluation_continues_with_the_same_command(
    run: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends after two of five answers; the other settings of a second evaluation do not take its folder."""
    config, adapter = run
    options = [config, "--adapter", adapter, "--cfg-options", "data_args.gen_kwargs.batch_size=1"]
    assert main([*options, "--out", "whole"]) == 0
    append = UnfinishedPredictions.append
    written: list[int] = []

    def killed(files: UnfinishedPredictions, records: list) -> None:  # type: ignore[type-arg]
        append(files, records)
        written.extend(record["index"] for record in records)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(UnfinishedPredictions, "append", killed)
        for out in ([], ["--out", "part"]):
            written.clear()
            with pytest.raises(KeyboardInterrupt):
                main([*options, *out])
    other = [*options, "data_args.gen_kwargs.max_new_tokens=2"]
    with pytest.raises(
        ConfigError, match="part contains an unfinished evaluation whose options in data_args.gen_kwargs"
    ):
        main([*other, "--out", "part"])
    assert main(other) == 0
    assert main(options) == 0
    assert main([*options, "--out", "part"]) == 0
    assert sorted(path.name for path in Path("exp/old").iterdir()) == [
        "adapter",
        "evaluation-test",
        "evaluation-test-2",
    ]
    whole = Path("whole/predictions.jsonl").read_bytes()
    for folder in ("exp/old/evaluation-test", "part"):
        assert Path(folder, "predictions.jsonl").read_bytes() == whole
        assert read(folder)[0]["figures"] == read("whole")[0]["figures"]
        assert read(folder)[0]["counts"]["continued"] == 2
        assert sorted(path.name for path in Path(folder).iterdir()) == [
            "metrics.json",
            "predictions.jsonl",
            "report.html",
        ]
    assert Path("exp/old/evaluation-test-2/predictions.jsonl").read_bytes() != whole


def test_several_labels_have_f1_and_rows_name_their_patient(
    run: tuple[str, str], write_config: Callable[..., str]
) -> None:
    Path("labels.csv").write_text("image,patient,edema,mass\n0.png,a,1,0\n1.png,a,1,1\n2.png,b,0,0\n")
    data = "dict(_delete_=True, type='MultiLabelDataset', data_path='labels.csv', image_folder='pictures'"
    more = f"data_args = dict(test={data}, labels=['edema', 'mass']), compute_metric='f1', gen_kwargs=dict("
    assert main([write_config(more + "max_new_tokens=2))", "labels.py"), "--adapter", run[1], "--out", "said"]) == 0
    values, rows = read("said")
    assert [row["patient"] for row in rows] == ["a", "a", "b"]
    figures = values["figures"]["f1"]
    assert (figures["labels"], figures["samples"], figures["f1_micro"], figures["failed"]) == (2, 3, 0, 3)
    assert {"f1_macro", "f1_samples", "f1_micro_ci_low", "f1_micro_ci_high"} <= figures.keys()
    scored = more + "scoring='options', choices=['none', 'edema', 'edema; mass']))"
    assert main([write_config(scored, "scored.py"), "--adapter", run[1], "--out", "scored"]) == 0
    values, rows = read("scored")
    assert values["figures"]["f1"]["failed"] == 0
    assert all(sum(row["scores"].values()) == pytest.approx(1) for row in rows)


def test_an_evaluation_that_is_killed_while_its_report_is_written_can_be_repeated(
    run: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are written then, and the folder used to be refused as one that is not empty."""
    options = [run[0], "--adapter", run[1], "--out", "part"]

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mllm.predict.evaluate.write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            main(options)
    before = read("part")
    assert main(options) == 0
    values, rows = read("part")
    assert rows == before[1] and values["figures"] == before[0]["figures"]
    assert sorted(path.name for path in Path("part").iterdir()) == ["metrics.json", "predictions.jsonl", "report.html"]
