"""Answers with images of several sizes are combined as computed by hand, and one size is the plain evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mllm.config.schema import ModelArgs
from mllm.engine.unfinished import UnfinishedPredictions
from mllm.errors import ConfigError
from mllm.pipeline.evaluate_model import main
from mllm.pipeline.finetune import main as finetune
from mllm.predict.scales import CombinedRecords, check_scales, combined

QUESTION = "Which? Options: A: none B: edema"


def row(prediction: str, question: str = QUESTION, **scores: float) -> dict:
    return {"question": question, "prediction": prediction, "tokens": 1, **({"scores": scores} if scores else {})}


def test_the_answer_is_the_option_with_the_largest_mean_probability() -> None:
    """Means of 0.6, 0.1 and 0.2 for none: 0.3, and of 0.4, 0.9 and 0.8 for edema: 0.7."""
    rows = [row("A", none=0.6, edema=0.4), row("B", none=0.1, edema=0.9), row("B", none=0.2, edema=0.8)]
    result = combined(rows, [224, 448, 896])
    assert result["prediction"] == "B" and result["scores"] == pytest.approx({"none": 0.3, "edema": 0.7})
    assert result["scales"] == {"224": "A", "448": "B", "896": "B"} and result["tokens"] == 3
    rows = [row("no", "Is it?", yes=0.45, no=0.55), row("yes", "Is it?", yes=0.9, no=0.1)]
    assert combined(rows, [448, 896], ["yes", "no"])["prediction"] == "yes"


@pytest.mark.parametrize(
    ("question", "predictions", "answer"),
    [
        (QUESTION, ["A", "edema", "(B)"], "(B)"),  # two for B
        (QUESTION, ["B", "unclear", "perhaps"], "B"),  # no vote of the others
        (QUESTION, ["A", "B"], "B"),  # a tie: the last
        (QUESTION, ["unclear", "perhaps"], "perhaps"),
        ("What?", ["A cyst.", "a  cyst", "A mass"], "a  cyst"),
    ],
)
def test_the_answer_of_most_scales_is_chosen(question, predictions, answer) -> None:
    rows = [row(prediction, question) for prediction in predictions]
    assert combined(rows, range(1, len(rows) + 1))["prediction"] == answer


def test_a_row_that_one_scale_skips_is_skipped_and_an_unfinished_one_is_left_out(tmp_path: Path) -> None:
    records = [
        {"index": 0, "row": row("A")},
        {"index": 1, "skipped": "rows.jsonl, line 2: no image"},
        {"index": 2, "row": row("A")},
        {"index": 3, "row": row("B")},
        {"index": 4, "row": row("B")},
    ]
    files = UnfinishedPredictions(tmp_path, {})
    assert files.open()
    files.append(reversed(records))
    files.close()
    ordered = CombinedRecords(files, [448, 896], ()).ordered(3, with_skipped=True)
    assert (ordered.answered().tolist(), ordered.skipped().tolist()) == ([0], [1])
    result = list(ordered.chosen(np.arange(2)))
    assert [record["index"] for record in result] == [0, 1] and result[1]["skipped"].endswith("no image")


@pytest.fixture
def config(write_config: Callable[..., str], write_rows: Callable[..., None]) -> str:
    """A config whose test split has four rows, with images of 112 pixels."""
    write_rows()
    data = "test=dict(_delete_=True, type='VQADataset', data_path='rows.jsonl', image_folder='pictures')"
    return write_config(f"data_args = dict({data}, gen_kwargs=dict(scoring='options', choices=['a scan', 'an organ']))")


def test_two_sizes_give_the_mean_of_both_and_one_size_is_the_plain_evaluation(config, tiny_medgemma: Path) -> None:
    def rows(folder: str, *options: str) -> list[dict]:
        overrides = ["--cfg-options", *options] if options else []
        assert main([config, "--model", str(tiny_medgemma), "--out", folder, *overrides]) == 0
        return [json.loads(line) for line in (Path(folder) / "predictions.jsonl").read_text().splitlines()]

    plain = rows("plain")
    own, small, both = (
        rows(folder, f"data_args.gen_kwargs.scales=[{scales}]")
        for folder, scales in (("own", "112"), ("small", "56"), ("both", "56,112"))
    )
    assert [{key: value for key, value in part.items() if key != "scales"} for part in own] == plain
    assert [part["scores"] for part in own] != [part["scores"] for part in small]
    for first, second, mean in zip(small, own, both, strict=True):
        scores = {key: (value + second["scores"][key]) / 2 for key, value in first["scores"].items()}
        assert mean["scores"] == pytest.approx(scores, abs=1e-5)
        assert mean["prediction"] == max(scores, key=scores.__getitem__)
        assert mean["scales"] == {"56": first["prediction"], "112": second["prediction"]}


def test_models_of_one_size_invalid_sizes_and_training_runs_are_refused(config, tiny_medgemma: Path) -> None:
    with pytest.raises(ConfigError, match="models of type 'image-text' read images of one size only"):
        check_scales([448, 896], ModelArgs(type="image-text", model_name_or_path="none"))
    args = ModelArgs(type="medgemma", model_name_or_path=str(tiny_medgemma))
    with pytest.raises(ConfigError, match=r"must be different sizes in pixels, not \[224, 224\]"):
        check_scales([224, 224], args)
    with pytest.raises(ConfigError, match="image_size=230 is not a multiple of the patch size 14"):
        check_scales([224, 230], args)
    with pytest.raises(ConfigError, match=r"gen_kwargs.scales is an option of mllm evaluate"):
        finetune([config, "--cfg-options", "data_args.gen_kwargs.scales=[224,448]"])
