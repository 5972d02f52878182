"""Tests of the check of all rows of all splits."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from patient_rows import Rows
from PIL import Image

from mllm.config.schema import DataArgs
from mllm.dataset.base import ImageTextDataset, RecordDataset
from mllm.dataset.builder import build_dataset, open_datasets
from mllm.dataset.checking import DECODED, check_splits
from mllm.dataset.mixing import ConcatDataset, MixedDataset, PatientSplit
from mllm.dataset.readers import read_images
from mllm.dataset.single_image_dataset.caption import CaptionDataset
from mllm.dataset.single_image_dataset.grounding import RECDataset
from mllm.dataset.single_image_dataset.pointing import Point_QA_local
from mllm.dataset.single_image_dataset.res import RESDataset
from mllm.dataset.single_image_dataset.text_qa import TextQADataset
from mllm.dataset.single_image_dataset.translation import TranslationDataset
from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.dataset.tasks.annotated import DetectionDataset
from mllm.dataset.tasks.segmentation import SegmentationDataset
from mllm.errors import DataError
from mllm.registry import DATASETS
from mllm.structures import Sample, Turn


@pytest.fixture
def write(tmp_path):
    """A function that writes rows about `a.png` of 40 x 30 pixels and returns the path of the table."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")

    def written(*rows: dict[str, Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return written


VQA = {"image": "a.png", "question": "what?", "answer": "this"}
BOX = {"img_path": "a.png", "expression": "it"}


def test_a_row_is_read_once_and_gives_patient_and_modality(write):
    class CountingReads(VQADataset):
        reads = 0

        def row(self, index):
            self.reads += 1
            return super().row(index)

    modalities = ["CT", "MR", None, ""] * 10
    data = CountingReads(write(*[{**VQA, "patient": n, "modality": name} for n, name in enumerate(modalities)]))
    report = check_splits({"train": data}).reports["train"]
    assert report.modalities == {"CT": 10, "MR": 10} and report.patients == 40
    decoded = len(range(0, 40, -(-40 // DECODED)))
    assert data.reads == 40 + decoded
    assert CountingReads(data.records.path, modality="US").inspect(2).modality == "US"


def test_the_check_refuses_the_masks_that_a_sample_refuses(write):
    size = [30, 40]
    masks = [
        [[1, 1, 9, 1, 9, 9]],
        [[1, 1, 9, 1]],
        [[1, 1, 9, 1, 9, 900]],
        [],
        "mask",
        {"size": size, "counts": [1200]},
        {"size": size, "counts": [3, 4]},
        {"size": [40, 30], "counts": [1200]},
        {"size": size, "counts": "a"},
    ]
    path = write(*[{**BOX, "bbox": [1, 1, 8, 8], "segmentation": mask} for mask in masks])
    data = build_dataset({"type": "RESDataset", "data_path": str(path)})
    refused = {}
    for index in range(len(data)):
        try:
            data.sample(index)
        except DataError as error:
            refused[str(error)] = index
    report = check_splits({"train": data}, skip=True).reports["train"]
    assert list(report.skipped) == list(refused) and list(refused.values()) == [1, 2, 3, 4, 6, 7, 8]
    assert report.answers.contents["mask"] == report.answers.contents["box"] == 2
    assert data.inspect(0).marks[0].mask is None and data.plain(0).marks[0].mask.shape == (30, 40)


def test_the_message_about_a_patient_in_two_splits_has_rows_and_no_names():
    train = Rows("t", ["secret-1", "secret-2", "secret-3", None])
    mixed = MixedDataset([Rows("w", ["other", "secret-2", "secret-3"])], [1])
    with pytest.raises(DataError) as excinfo:
        check_splits({"train": train, "validation": ConcatDataset([Rows("v", ["x", "y"]), mixed])})
    message = str(excinfo.value)
    assert message.startswith("2 patients are in both train and validation, for example t, line 2 and w, line 2: ")
    assert "secret" not in message
    check_splits({"train": train, "validation": Rows("v", ["x", "y"]), "test": Rows("n", [None, None])})


def test_unusable_rows_are_an_error_unless_they_are_skipped():
    splits = {"train": Rows("t", ["a", "unreadable", "b", "unreadable"]), "test": Rows("s", ["c"])}
    with pytest.raises(
        DataError,
        match=r"^t, line 2: not valid JSON \(1 other row of train cannot be used, either\); "
        "correct the row, or leave such rows out with data_args.on_error='skip'$",
    ):
        check_splits(splits)
    checked = check_splits(splits, skip=True)
    assert checked.skipped() == [("train", "t, line 2: not valid JSON"), ("train", "t, line 4: not valid JSON")]
    assert {name: report.patients for name, report in checked.reports.items()} == {"train": 2, "test": 1}
    with pytest.raises(DataError, match="no row of the training split could be used; one of them: t, line 1"):
        check_splits({"train": Rows("t", ["unreadable"])}, skip=True)


def test_if_no_row_can_be_used_the_advice_is_not_to_skip_rows(write):
    path = write(VQA, VQA)
    with pytest.raises(DataError) as excinfo:
        check_splits({"test": VQADataset(str(path), columns={"image": "file"})})
    reason, advice = "the row has no such column", "correct the rows, or the options in data_args.test"
    assert reason in str(excinfo.value)
    assert str(excinfo.value).endswith(f"; no other row of test can be used, either: {advice}")


@pytest.mark.parametrize("ids", [("17", "017"), ("A1", "a1")])
def test_two_forms_of_an_id_in_two_splits_are_refused(ids):
    with pytest.raises(DataError, match="patients of t, line 1 and s, line 1 differ only in case, in leading"):
        check_splits({"train": Rows("t", [ids[0]]), "test": Rows("s", [ids[1]])})


@pytest.mark.parametrize(
    ("cls", "row"),
    [
        (VQADataset, VQA),
        (RECDataset, {**BOX, "bbox": [1, 2, 30, 20]}),
        (CaptionDataset, {"img_path": "a.png", "caption": "A lung."}),
        (TextQADataset, {"question": "what?", "answer": "this"}),
        (TranslationDataset, {"src": "No.", "dst": "Non."}),
    ],
)
def test_every_class_reads_the_patient_of_a_row(write, cls, row):
    train = cls(write({**row, "patient": 17.0}, name="train.jsonl"))
    assert train.group(0) == train.sample(0).group == "17"
    test = cls(write({**row, "patient": "17 "}, name="test.jsonl"))
    with pytest.raises(DataError, match="1 patient is in both train and test"):
        check_splits({"train": train, "test": test})
    assert len(PatientSplit(train, "train", (1.0, 0.0, 0.0))) == 1


def test_the_column_of_the_patient_has_any_name_in_every_class_that_reads_a_table(tmp_path):
    read = []
    for name in DATASETS.locations:
        cls = DATASETS.find(name)
        options = cls.miniature(tmp_path / name, 1) if issubclass(cls, RecordDataset) else {}
        path = Path(options.get("data_path", ""))
        if path.suffix != ".jsonl":
            continue
        rows = [{**json.loads(line), "mrn": 7} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        known = DATASETS.describe(name).parameters
        options = {"type": name, **{key: value for key, value in options.items() if key in known}}
        data = build_dataset({**options, "patient_column": "mrn"})
        with pytest.raises(DataError, match="1 patient is in both train and test"):
            check_splits({"train": data, "test": data})
        wrong = build_dataset({**options, "patient_column": "mrm"})
        with pytest.raises(DataError, match="line 1: patient_column is 'mrm', but the row has no such column.* 'mrn'"):
            check_splits({"train": wrong})
        read.append(name)
    assert {"VQADataset", "RECDataset", "RESDataset", "DetectionDataset", "MultiLabelDataset"} <= {*read}
    assert {"CountingDataset", "PresenceDataset", "RegressionDataset", "TextQADataset", "CaptionDataset"} <= {*read}


class BySubject(ImageTextDataset):
    """Dataset of a user whose `parse` names the patient."""

    def parse(self, row: dict[str, Any]) -> Sample:
        turns = [Turn("user", row["question"]), Turn("assistant", row["answer"])]
        return Sample(turns, [self.read_image(row["image"])], group=row["subject_id"])


def test_the_patient_that_parse_names_is_checked(write):
    train = BySubject(write({**VQA, "subject_id": 7}, name="train.jsonl"))
    test = BySubject(write({**VQA, "subject_id": "7"}, name="test.jsonl"))
    assert train.group(0) == "7"
    with pytest.raises(DataError, match="1 patient is in both train and test"):
        check_splits({"train": train, "test": test})
    both = BySubject(write({**VQA, "subject_id": 7, "patient": 8}))
    with pytest.raises(DataError, match="line 1: BySubject.parse returns another patient than field 'patient'"):
        check_splits({"train": both})
    assert BySubject(write({**VQA, "subject_id": 7, "patient": "7"})).sample(0).group == "7"


def test_a_column_that_may_contain_the_patient_is_named(write, caplog):
    path = write({**VQA, "Patient ID": 7})
    hint = "no row of train has a patient: if its column 'Patient ID' is the patient, set patient_column='Patient ID'"
    with caplog.at_level(logging.WARNING):
        checked = check_splits({"train": VQADataset(path)})
    assert hint in caplog.text
    assert str(checked.reports["train"]) == "patients unknown"
    with pytest.raises(DataError, match="PatientSplit requires: if its column 'Patient ID' is the patient"):
        PatientSplit(VQADataset(path))
    options = dict(type="VQADataset", data_path=str(path), patient_column="Patient ID")
    checked = open_datasets(DataArgs(train=options))
    assert checked["train"].group(0) == "7"
    assert str(checked.reports["train"]) == "1 patient"


def test_every_row_and_every_file_is_looked_up_without_decoding(write, monkeypatch):
    rows = [VQA] * 40
    decoded = []
    monkeypatch.setattr("mllm.dataset.image_files.UndecodedImage.load", lambda image: decoded.append(image.files))
    check_splits({"train": VQADataset(write(*rows))})
    assert not decoded
    with pytest.raises(
        DataError,
        match=r"rows\.jsonl, line 40: .*b\.png does not exist: did you mean 'a\.png'\? Correct the row, ",
    ):
        check_splits({"train": VQADataset(write(*rows[1:], {**VQA, "image": "b.png"}))})
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: field 'question' is empty; correct the row"):
        check_splits({"train": VQADataset(write(VQA, {**VQA, "question": float("nan")}, *rows))})


def test_images_of_some_rows_are_decoded(write, tmp_path):
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    rows = [VQA] * 32
    rows[8] = {**VQA, "image": "b.png"}
    with pytest.raises(DataError, match=r"line 9: .*b\.png is truncated or damaged"):
        check_splits({"train": VQADataset(write(*rows))})


@pytest.mark.parametrize("kind", ["coco", "masks"])
def test_boxes_whose_form_is_known_may_all_be_in_the_upper_left_quarter(tmp_path, kind):
    """COCO has one form of boxes, and the box of a mask is computed, as that of the liver in axial slices."""
    corners = [(number, number, number + 8, number + 8) for number in range(12)]
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    for number, (x1, y1, x2, y2) in enumerate(corners):
        Image.new("RGB", (64, 64)).save(tmp_path / "images" / f"{number}.png")
        mask = np.zeros((64, 64), np.uint8)
        mask[y1:y2, x1:x2] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    if kind == "masks":
        dataset = SegmentationDataset(tmp_path / "images", tmp_path / "masks", labels="liver")
    else:
        images = [{"id": number, "file_name": f"{number}.png"} for number in range(12)]
        objects = [{"image_id": n, "category_id": 1, "bbox": [x, y, 8, 8]} for n, (x, y, _, _) in enumerate(corners)]
        data = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "liver"}]}
        (tmp_path / "coco.json").write_text(json.dumps(data))
        dataset = DetectionDataset(tmp_path / "coco.json", tmp_path / "images")
    assert dataset.sample(0).marks[0].box == corners[0]
    check_splits({"train": dataset})


@pytest.mark.parametrize("size", [3, 500])
def test_the_number_of_decoded_images_does_not_depend_on_the_size_of_a_mixture(write, monkeypatch, size):
    decoded = []
    monkeypatch.setattr(
        "mllm.dataset.image_files.read_images",
        lambda path, **options: decoded.append(path) or read_images(path, **options),
    )
    check_splits({"train": MixedDataset([VQADataset(write(*[VQA] * 40))], [1.0], size=size)})
    assert len(decoded) == 14  # every third row


def test_boxes_are_compared_with_the_size_in_the_header_of_the_file(write, tmp_path, monkeypatch):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=turned)
    monkeypatch.setattr("mllm.dataset.image_files.UndecodedImage.load", None)
    fits = {**BOX, "img_path": "turned.jpg", "bbox": [1, 2, 30, 40]}
    check_splits({"train": RECDataset(write(fits))})
    with pytest.raises(
        DataError, match=r"line 2: .*exceeds its image of 40 x 30 pixels; this dataset reads x1 y1 x2 y2"
    ):
        check_splits({"train": RECDataset(write(fits, {**BOX, "bbox": [1, 2, 30, 40]}))})


def test_fractions_are_refused_where_pixels_are_expected(write):
    large, fractions = {**BOX, "bbox": [1, 2, 30, 20]}, {**BOX, "bbox": [0.1, 0.2, 0.5, 0.9]}
    with pytest.raises(DataError) as excinfo:
        check_splits({"train": RECDataset(write(large, fractions, fractions))})
    assert "rows.jsonl, line 2: the box [0.1, 0.2, 0.5, 0.9] is smaller than 2 pixels, like 2 of 3" in str(
        excinfo.value
    )
    assert "are the numbers fractions of the image (0 to 1), or in another form?" in str(excinfo.value)
    check_splits({"train": RECDataset(write(large, fractions))})
    point = {"file_path": "a.png", "question": "what?", "answer": "a", "bbox": [1, 2, 30, 20], "point": [0.5, 0.25]}
    with pytest.raises(DataError, match=r"the point \[0.5, 0.25\] is in the first pixel, like all 1 points"):
        check_splits({"train": Point_QA_local(write(point), version="p")})


def test_width_and_height_in_a_field_of_corners_are_recognized(write):
    with pytest.raises(DataError, match=r"reversed corners; this dataset reads x1 y1 x2 y2 in pixels"):
        check_splits({"train": RECDataset(write({**BOX, "bbox": [20, 2, 10, 20]}))})


def test_width_and_height_that_are_also_corners_are_recognized_by_their_places(write):
    """A box x y w h with w > x and h > y is read as corners around a center in the upper left quarter of the image."""
    rng = np.random.default_rng(0)
    centers = rng.uniform((10, 8), (30, 22), size=(80, 2))  # of 40 x 30 pixels
    corners = [[x - 8, y - 6, x + 8, y + 6] for x, y in centers]
    sizes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in corners if x1 + 3 < x2 - x1 and y1 + 3 < y2 - y1]
    rows = [{**BOX, "bbox": box} for box in sizes[:12]]
    check_splits({"train": RECDataset(write(*({**BOX, "bbox": box} for box in corners)))})
    with pytest.raises(DataError, match=r"line 1: .* all 12 boxes of this dataset: are the numbers x y width height\?"):
        check_splits({"train": RECDataset(write(*rows))})
    for form in ("xywh", "xyxy"):
        check_splits({"train": RECDataset(write(*rows), box=form)})
    check_splits({"train": RECDataset(write(*rows[:9]))})
    check_splits({"train": RECDataset(write(*rows[:1] * 30))})


def test_marks_that_are_all_in_the_upper_left_quarters_are_warned_about(write, caplog):
    """Percent of a larger image, and boxes of smaller copies, are valid boxes in pixels."""
    rows = [{**BOX, "bbox": [k, 1, 4, 5]} for k in range(1, 11)]  # of 40 x 30 pixels
    check_splits({"train": RECDataset(write(*rows), box="xywh")})
    assert "rows.jsonl, line 1: all boxes of this dataset are in the upper left quarters of their images" in caplog.text
    caplog.clear()
    check_splits({"train": RECDataset(write(*rows[:9]), box="xywh")})
    check_splits({"train": RECDataset(write(*rows, {**BOX, "bbox": [17, 1, 4, 5]}), box="xywh")})
    assert not caplog.text
    row = {"file_path": "a.png", "question": "what?", "answer": "a", "bbox": [1, 2, 30, 20]}
    rows = [{**row, "point": [k, 14.5]} for k in range(2, 12)]
    check_splits({"train": Point_QA_local(write(*rows), version="p")})
    assert "all points of this dataset are in the upper left quarters" in caplog.text


@pytest.mark.parametrize("scale", [1, 1 / 40, 0.5])
def test_polygons_in_another_form_than_their_boxes_are_refused(write, scale):
    corners = [[8, 6, 18, 16], [20, 12, 38, 28], [24, 4, 32, 10]]
    rows = [
        {
            "img_path": "a.png",
            "expression": "it",
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": [[scale * number for number in (x1, y1, x2, y1, x2, y2, x1, y2)]],
        }
        for x1, y1, x2, y2 in corners
    ]
    splits = {"train": RESDataset(write(*rows))}
    if scale == 1:
        check_splits(splits)
    else:
        with pytest.raises(DataError, match=r"line 1: the polygons are not in the box, like those of \d of 3 objects"):
            check_splits(splits)


def test_fractions_in_a_file_of_coco_have_a_message_about_the_file(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0.1, 0.2, 0.5, 0.4]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    with pytest.raises(DataError, match="the numbers of this file format are pixels: multiply fractions by"):
        check_splits({"train": DetectionDataset(tmp_path / "coco.json", tmp_path)})


@pytest.mark.parametrize("form", ["xyxy", "xywh"])
def test_boxes_of_blood_cells_as_corners_and_as_width_and_height(write, shared_data, form):
    folder = shared_data / "bccd"
    rows = []
    for path in sorted((folder / "Annotations").glob("*.xml"))[:60]:
        for x1, y1, x2, y2 in read_objects(path):
            box = [x1, y1, x2, y2] if form == "xyxy" else [x1, y1, x2 - x1, y2 - y1]
            if box[2] > x1 and box[3] > y1:  # other rows are refused on their own
                rows.append({"img_path": f"{path.stem}.jpg", "expression": "it", "bbox": box})
    splits = {"train": RECDataset(write(*rows), image_folder=folder / "JPEGImages")}
    if form == "xyxy":
        check_splits(splits)
    else:
        with pytest.raises(DataError, match=rf"all {len(rows)} boxes of this dataset: are the numbers x y width"):
            check_splits(splits)


def read_objects(path: Path) -> list[list[float]]:
    """Return the corners of all boxes of a file of Pascal VOC."""
    boxes = ElementTree.parse(path).getroot().iter("bndbox")
    return [[float(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax")] for box in boxes]


def test_implausible_measures_are_named_with_their_rows(caplog):
    class Measured(Rows):
        values = [
            {"EF": 0.656},
            {"EF": 55.0, "EDV": 100.0, "ESV": 45.0},
            {"EF": 60.0, "EDV": 40.0, "ESV": 100.0},
            {"EF": 60.0, "EDV": 0.1, "ESV": 0.04},
            {"EF": 60.0, "EDV": 100.0, "ESV": 80.0},
            {"EF": 60.0, "EDV": float("nan"), "ESV": 80.0},
            {"EF": -5.0},
        ]

        def inspect(self, index: int) -> Sample:
            return Sample(turns=[], measures=self.values[index])

    with caplog.at_level(logging.WARNING):
        check_splits({"train": Measured("t", [None] * 7)})
    assert [record.getMessage() for record in caplog.records] == [
        "train: EF is at most 1 %: if it is a fraction, such as 0.656, multiply it by 100 (t, line 1)",
        "train: ESV is not below EDV: the columns may be exchanged (t, line 3)",
        "train: a volume is below 1 mL or above 1,000 mL: its unit may be another one, such as L or mm3 (t, line 4)",
        "train: EF differs by more than 20 % from 100 (EDV - ESV) / EDV: check the columns and their rows (t, line 5)",
        "train: EF is below 0 % (t, line 7)",
    ]
