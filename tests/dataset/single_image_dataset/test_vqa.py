from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.errors import DataError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture
def make(tmp_path):
    for color in ("red", "blue"):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{color}.png")

    def build(row: dict, **options) -> VQADataset:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"image": "red.png", "question": "what?", "answer": "this", **row}) + "\n")
        return VQADataset(path, **options)

    return build


def test_one_image_one_question_one_answer(make):
    sample = make({"patient": 7})[0]
    assert [(turn.role, turn.text) for turn in sample.turns] == [("user", "<image> what?"), ("assistant", "this")]
    assert [image.getpixel((0, 0)) for image in sample.images] == [(255, 0, 0)]
    assert sample.group == "7"


def test_several_images_precede_the_question_or_replace_its_placeholders(make):
    pair = ["red.png", {"path": "blue.png"}]
    sample = make({"image": pair})[0]
    assert sample.turns[0].text == "<image> <image> what?"
    assert [image.getpixel((0, 0)) for image in sample.images] == [(255, 0, 0), (0, 0, 255)]
    placed = "Compare <image> with <image>."
    assert make({"image": pair, "question": placed})[0].turns[0].text == placed
    with pytest.raises(DataError, match="line 1: the question has 1 <image> for 2 images"):
        make({"image": pair, "question": "<image> what?"})[0]


def test_the_modality_of_the_row_overrides_that_of_the_dataset(make):
    assert make({}, modality="CT")[0].turns[0].text == "<image> CT: what?"
    assert make({"modality": "MRI"}, modality="CT")[0].turns[0].text == "<image> MRI: what?"


@pytest.mark.parametrize(("answer", "text"), [(3, "3"), ([1, 2], "[1, 2]"), ("a", "a"), (0, "0"), (False, "false")])
def test_answers_that_are_not_text_are_written_as_json(make, answer, text):
    assert make({"answer": answer})[0].turns[1].text == text


@pytest.mark.parametrize("field", ["image", "question", "answer"])
@pytest.mark.parametrize("empty", ["", "  ", "nan", None, [], {}, float("nan")])
def test_an_empty_field_is_refused(make, field, empty):
    with pytest.raises(DataError, match=f"line 1: field '{field}' is empty"):
        make({field: empty})[0]


def test_missing_values_of_optional_fields_are_not_text(make):
    sample = make({"modality": float("nan"), "patient": float("nan")}, modality="CT")[0]
    assert sample.turns[0].text == "<image> CT: what?"
    assert sample.group is None


def test_one_answer_of_several_annotators_is_chosen(make):
    answers = {"answer": ["yes", "yes", "no"]}
    with pytest.raises(
        DataError, match="line 1: field 'answer' has 3 answers, but only one can be learned: set choose_answer="
    ):
        make(answers)[0]
    for equal in (["yes"], ["yes", "", "yes"]):
        assert make({"answer": equal})[0].turns[1].text == "yes"
    with pytest.raises(DataError, match="field 'answer' is empty"):
        make({"answer": [""]})[0]
    assert make(answers, choose_answer="majority")[0].turns[1].text == "yes"
    assert make({"answer": ["no", "yes", "yes"]}, choose_answer="first")[0].turns[1].text == "no"
    with pytest.raises(DataError, match="field 'answer' has a number that is not finite"):
        make({"answer": [1.0, float("nan")]})[0]


def test_the_miniature_can_be_read(tmp_path):
    dataset = VQADataset(**VQADataset.miniature(tmp_path / "train", 8))
    samples = list(dataset)
    assert len(samples) == 8
    assert all(sample.turns[1].text for sample in samples)
    assert len({sample.group for sample in samples}) == 8


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files of ../shared/data are not here")
def test_real_files_of_every_kind(tmp_path):
    names = [
        "dicom/CT_small.dcm",
        "dicom/MR_small.dcm",
        "dicom/RG1_J2KI.dcm",
        {"path": "dicom/examples_ybr_color.dcm", "frames": [0, 10]},
        "images/cxr_nih_00000001_000.png",
        "images/retina.jpg",
        "nifti/anatomical.nii",
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"image": n, "question": "what?", "answer": "this"}) + "\n" for n in names))
    samples = list(VQADataset(path, SHARED))
    assert [len(sample.images) for sample in samples] == [1, 1, 1, 2, 1, 1, 1]
    assert {image.mode for sample in samples for image in sample.images} == {"RGB"}
    path.write_text(json.dumps({"image": "dicom/waveform_ecg.dcm", "question": "what?", "answer": "this"}) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: .*waveform_ecg\.dcm"):
        VQADataset(path, SHARED)[0]
