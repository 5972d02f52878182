"""Tests of `mllm.engine.evaluation`."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scores import points

from mllm.engine.evaluation import evaluate_split, mark_fields, score_split
from mllm.engine.predictions import answers_of
from mllm.errors import DataError
from mllm.metrics.grounding import Rec
from mllm.metrics.segmentation import HD95
from mllm.models.generation.generate import Generation, generate
from mllm.private_messages import call_privately
from mllm.structures import Answer, Mark, Turn

TALKING = dict(max_new_tokens=6, do_sample=True, temperature=20.0, progress=False)
"""Left to itself this tiny model says nothing."""


def test_rows_contain_question_reference_and_prediction(make_bundle, rows):
    bundle, split = make_bundle(), rows(5)
    calls = []

    def metric(predictions, references):
        calls.append((list(predictions), list(references)))
        return {"count": float(len(predictions))}

    evaluation = evaluate_split(bundle, split, {"counting": metric, "again": metric}, **TALKING)
    predictions = generate(bundle, [split.sample(index) for index in range(5)], **TALKING)
    assert len({prediction.text for prediction in predictions}) == 5
    assert evaluation.figures == {"counting": {"count": 5.0}, "again": {"count": 5.0}}
    for index, row in enumerate(evaluation.rows):
        sample = split.sample(index)
        assert row["source"] == f"rows, row {index}"
        assert row["question"] == sample.turns[0].text
        assert row["reference"] == sample.turns[-1].text
        assert row["prediction"] == predictions[index].text
        assert 0 < row["tokens"] == predictions[index].tokens <= 6
        assert not {"boxes", "masks", "points", "reference_boxes"} & set(row)
    assert calls == [(predictions, [Answer(row["reference"]) for row in evaluation.rows])] * 2
    assert [index for index, _ in evaluation.rows.numbered()] == [0, 1, 2, 3, 4]


def test_rows_name_their_images_unless_the_run_is_private(make_bundle, rows):
    class Named(rows):
        def sample(self, index, epoch=0):
            return replace(super().sample(index, epoch), files=["doe_john.png"] if index else [], group="doe")

    for private, origins in (
        (False, [{"source": "rows, row 0"}, {"source": "rows, row 1", "images": ["doe_john.png"]}]),
        (True, [{"source": "test, row 1"}, {"source": "test, row 2"}]),
    ):
        evaluate = partial(evaluate_split, make_bundle(), Named(2), {}, max_new_tokens=1, progress=False)
        evaluation = call_privately(evaluate, private)
        shown_origins = [{key: row[key] for key in ("source", "images") if key in row} for row in evaluation.rows]
        assert shown_origins == origins
        assert not private or "doe" not in repr(list(evaluation.rows))


def test_predictions_do_not_depend_on_the_reference(make_bundle, rows):
    bundle, split = make_bundle(), rows(3)

    class Lying(rows):
        def sample(self, index, epoch=0):
            sample = super().sample(index, epoch)
            sample.turns[-1] = Turn("assistant", "something else")
            return sample

    answers = [
        [row["prediction"] for row in evaluate_split(bundle, some, {}, **TALKING).rows] for some in (split, Lying(3))
    ]
    assert answers[0] == answers[1]
    assert any(answers[0])


def test_a_split_can_be_evaluated_without_metrics(make_bundle, rows):
    evaluation = evaluate_split(make_bundle(), rows(1), {}, max_new_tokens=2, progress=False)
    assert (len(evaluation.rows), evaluation.figures, evaluation.skipped) == (1, {}, [])


class Pointing:
    """Rows that name one box in the question and another one in the answer, 50 x 40 pixels."""

    question_box, answer_box = (5.0, 4.0, 25.0, 20.0), (10.04, 8.0, 30.0, 36.06)

    def __init__(self, rows):
        self.inner = rows(4)

    def __len__(self):
        return 2

    def sample(self, index, epoch=0):
        sample = self.inner.sample(index)
        turns = [
            Turn("user", "<image> What is near <box>?", ((0,),)),
            Turn("assistant", "A lesion at <box>.", ((1,),)),
        ]
        return replace(sample, turns=turns, marks=[Mark(box=self.question_box), Mark(box=self.answer_box)])


def test_a_box_in_the_question_is_never_scored(make_bundle, rows):
    """The model writes no box: boxes of the question and of the reference must not count as predictions."""
    evaluation = evaluate_split(make_bundle(), Pointing(rows), {"rec": Rec}, **TALKING)
    assert points(evaluation.figures["rec"]) == {
        "accuracy": 0,
        "mean_iou": 0,
        "failed": 2,
        "target_failed": 0,
        "samples": 2,
    }
    for row in evaluation.rows:
        assert "boxes" not in row
        assert row["reference_boxes"] == [[10.0, 8.0, 30.0, 36.1]]
        assert row["reference"].startswith("A lesion at [")


def test_the_reference_in_the_format_of_the_model_is_correct(make_bundle, rows, monkeypatch):
    """The reference is written and parsed by the encoder, which rounds to a thousandth of the image."""
    bundle = make_bundle()

    def spoken(generation, prompts, numbers, answered):
        texts = [bundle.encoder.reference(Pointing(rows).sample(number)).text for number in numbers]
        ids = [bundle.encoder.tokenizer(text, return_tensors="pt")["input_ids"][0] for text in texts]
        pairs = zip(ids, prompts, strict=True)
        yield dict(enumerate(bundle.encoder.read_answer(tokens, prompt.frames) for tokens, prompt in pairs))

    monkeypatch.setattr(Generation, "batches", spoken)
    evaluation = evaluate_split(bundle, Pointing(rows), {"rec": Rec})
    assert evaluation.figures["rec"]["accuracy"] == 1
    assert 0.99 < evaluation.figures["rec"]["mean_iou"] <= 1
    for row in evaluation.rows:
        assert row["prediction"] == row["reference"]
        assert np.abs(np.subtract(row["boxes"], row["reference_boxes"])).max() <= 0.1


def test_a_row_with_a_missing_mark_is_skipped_or_refused(make_bundle, rows):
    class Wrong(Pointing):
        def sample(self, index, epoch=0):
            sample = super().sample(index)
            return replace(sample, marks=sample.marks[:1]) if index else sample

    bundle = make_bundle()
    with pytest.raises(DataError, match="row 1: .* mark 1"):
        evaluate_split(bundle, Wrong(rows), {}, **TALKING)
    evaluation = evaluate_split(bundle, Wrong(rows), {}, skip_failures=True, **TALKING)
    assert (len(evaluation.rows), len(evaluation.skipped)) == (1, 1)


def test_mark_fields_are_pixels_and_run_lengths():
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:7] = True
    marks = (Mark(box=(1.26, 2.0, 3.0, 4.0)), Mark(mask=mask, image=1), Mark(point=(7.77, 1.0)))
    fields = mark_fields(Answer("", marks, unreadable=2), "reference_")
    assert fields.pop("reference_masks")[0] == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) | {
        "counts": coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    }
    assert fields == {
        "reference_boxes": [[1.3, 2.0, 3.0, 4.0], [3.0, 2.0, 7.0, 4.0]],
        "reference_box_images": [0, 1],
        "reference_points": [[7.8, 1.0]],
        "reference_mask_boxes": [1],
        "reference_unreadable": 2,
    }
    assert mark_fields(Answer("nothing")) == {}


def test_rows_have_the_pixel_spacing_of_their_images_and_metrics_read_it(make_bundle, rows):
    class Masked(rows):
        def sample(self, index, epoch=0):
            sample = super().sample(index, epoch)
            mask = Mark(mask=np.eye(40, 50, dtype=bool))
            turns = [sample.turns[0], Turn("assistant", "<box>", ((0,),))]
            return replace(sample, turns=turns, marks=[mask], spacings=((0.5, 2.0),) if index == 0 else ())

    evaluation = evaluate_split(make_bundle(), Masked(2), {"hd95": HD95}, max_new_tokens=1, progress=False)
    assert points(evaluation.figures["hd95"]) == {
        "hd95_mm": pytest.approx(np.hypot(50 * 0.5, 40 * 2)),
        "hd95_px": pytest.approx(np.hypot(50, 40)),
        "failed": 2,
        "samples": 2,
        "samples_mm": 1,
        "samples_px": 1,
    }
    written = [json.loads(json.dumps(row)) for row in evaluation.rows]
    assert [row.get("pixel_spacings") for row in written] == [[[0.5, 2.0]], None]
    assert [answers_of(row)[1].spacings for row in written] == [((0.5, 2.0),), ()]


def test_records_are_read_once_for_figures_and_skipped_rows():
    class Counted:
        def __init__(self, records):
            self.records, self.read = records, []

        def ordered(self, rows, with_skipped):
            return self

        def answered(self):
            return np.array([0, 2])

        def skipped(self):
            return np.array([1])

        def chosen(self, indices):
            self.read += indices.tolist()
            return (self.records[index] for index in indices.tolist())

    answer = {"source": "a", "reference": "x", "prediction": "x", "tokens": 1}
    records = Counted([{"index": 0, "row": answer}, {"index": 1, "skipped": "no image"}, {"index": 2, "row": answer}])
    evaluation = score_split([None] * 3, records, {}, skip_failures=True)
    assert records.read == [0, 2, 1] and evaluation.tokens == 2
    assert [(failure.message, failure.draw) for failure in evaluation.failures] == [("no image", (1, 0))]
    assert [index for index, _ in evaluation.rows.numbered()] == [0, 2] and len(evaluation.failures) == 1
