"""Tests of the check that the rows of a split have what a metric reads."""

from __future__ import annotations

import json
import logging

import pytest
from PIL import Image

from mllm.dataset.checking import check_splits
from mllm.dataset.single_image_dataset.dummy import DummyDataset
from mllm.dataset.single_image_dataset.pointing import Point_QA_local
from mllm.dataset.single_image_dataset.res import RESDataset
from mllm.dataset.single_image_dataset.scenes import PhantomBoxDataset
from mllm.dataset.single_image_dataset.text_qa import TextQADataset
from mllm.dataset.video_dataset.phantom_echo import PhantomEchoDataset
from mllm.errors import ConfigError
from mllm.predict.metrics import check_metrics
from mllm.registry import METRICS


@pytest.fixture
def texts(tmp_path):
    """A function that returns a split of questions with these answers in text."""

    def split(*answers: str) -> TextQADataset:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"question": "what?", "answer": answer}) + "\n" for answer in answers))
        return TextQADataset(path)

    return split


def check(dataset, *names: str) -> None:
    check_metrics(names, "test", check_splits({"test": dataset}), "config.py:3")


@pytest.mark.parametrize(
    ("metric", "needed"),
    [
        ("measures", "a known measure, in a field or in its answer (`EF 58.4 %`)"),
        ("rec", "a box or a mask in its answer"),
        ("coco_ap", "a box or a mask in its answer"),
        ("res", "a mask in its answer"),
        ("mae", "a number as its answer (`12`, `58.4 %`)"),
    ],
)
def test_a_metric_without_targets_is_refused_and_others_are_suggested(texts, metric, needed):
    with pytest.raises(ConfigError) as excinfo:
        check(texts("yes", "no"), metric)
    message, _, applicable = str(excinfo.value).partition("; metrics that apply are ")
    assert message == (
        f"config.py:3: metric '{metric}' cannot be computed, because none of the 2 rows of test has {needed}"
    )
    assert {"accuracy", "choice", "f1", "short_answer"} <= set(applicable.split(", "))
    assert not {"mae", "measures", "rec", "res", "coco_ap"} & set(applicable.split(", "))
    check(texts("yes", "no"), "accuracy", "short_answer", "choice")


def test_metrics_of_probabilities_need_scored_options(texts):
    with pytest.raises(ConfigError, match="config.py:3: metric 'auroc' needs the probabilities of options: set"):
        check(texts("yes", "no"), "auroc")
    check_metrics(["auroc"], "test", check_splits({"test": texts("yes", "no")}), "config.py:3", {"scoring": "options"})


@pytest.mark.parametrize(
    "answers",
    [
        [f"The lesion has {number} mm." for number in range(20)],
        ["No finding.", "no finding", *(f"The lesion has {number} mm." for number in range(28))],
        [f"There is an opacity in the lower left lobe, {number} mm wide." for number in range(6)],
    ],
    ids=["all different", "mostly different", "a small split"],
)
def test_free_text_has_no_choices(texts, answers):
    with pytest.raises(ConfigError, match="rows of test has an answer that is one of a few: most rows have an answer"):
        check(texts(*answers), "choice")


def test_a_few_answers_are_choices(texts, tmp_path):
    check(texts(*("yes", "No", "no ", "YES") * 5), "choice")
    check(texts("yes", "The answer is no.", "maybe"), "choice")
    path = tmp_path / "options.jsonl"
    question = "What is it? Options: A: an opacity of the lower left lobe B: a fracture of the third right rib"
    path.write_text(json.dumps({"question": question, "answer": "an opacity of the lower left lobe"}) + "\n")
    check(TextQADataset(path), "choice")


def test_texts_without_a_finding_have_no_labels_of_chexpert(texts, caplog):
    with pytest.raises(ConfigError, match="none of the 2 rows of test has a finding of a chest X-ray in its answer"):
        check(texts("yes", "No pneumothorax. The lungs are clear."), "chexpert_f1")
    check(texts("yes", "Small pleural effusion. No pneumothorax."), "chexpert_f1")
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING, logger="mllm"):
        check(texts(*map(str, range(2001))), "chexpert_f1")
    assert "none of the first 2000 different answers of test has a finding of a chest X-ray" in caplog.text


def test_the_number_of_rows_with_a_target_is_logged(texts, caplog):
    with caplog.at_level(logging.WARNING, logger="mllm"):
        check(texts("EF 55.0 %", "It cannot be measured.", "EF is reduced."), "measures", "accuracy")
    assert [record.getMessage() for record in caplog.records] == [
        "metric 'measures': 1 of the 3 rows of test have a known measure, in a field or in its answer (`EF 58.4 %`), "
        "with which it compares predictions"
    ]


def test_boxes_of_a_question_are_no_targets_and_masks_of_an_answer_are(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    row = {"img_path": "a.png", "expression": "it", "bbox": [1, 2, 20, 20], "segmentation": [[1, 2, 20, 2, 20, 20]]}
    (tmp_path / "masks.jsonl").write_text(json.dumps(row) + "\n")
    check(RESDataset(tmp_path / "masks.jsonl"), "res", "rec", "coco_ap")
    row = {"file_path": "a.png", "question": "what?", "answer": "this", "bbox": [1, 2, 20, 20], "point": [5, 5]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n")
    questions = Point_QA_local(tmp_path / "questions.jsonl", version="b")
    assert questions.sample(0).marks[0].box == (1, 2, 20, 20)
    with pytest.raises(ConfigError, match="metric 'rec'"):
        check(questions, "rec")


def test_generated_rows_are_sampled(caplog):
    check(PhantomEchoDataset(4), "measures")
    check(PhantomBoxDataset(12), "rec", "res")
    with pytest.raises(
        ConfigError,
        match="none of the 8 rows of test has a mask .* that apply are accuracy, .*choice, .*measures, .*short_answer",
    ):
        check(DummyDataset(8, image_size=32), "res")
    with caplog.at_level(logging.WARNING, logger="mllm"):
        check(DummyDataset(20, image_size=32), "accuracy", "res")
    assert "metric 'res' may have nothing to compare: none of 16 sampled rows of test has a mask" in caplog.text


def test_a_metric_of_a_plugin_applies_to_everything(texts):
    @METRICS.register_module(name="length")
    def length(predictions, references):
        return {"length": 0.0}

    try:
        check(texts("yes"), "length")
        with pytest.raises(ConfigError, match="metrics that apply are accuracy, .*length, "):
            check(texts("yes"), "rec")
    finally:
        del METRICS.module_dict["length"]
