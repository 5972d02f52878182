"""Datasets by task: questions, answers, marks, and refusals, on rows written by hand and on real blood smears."""

import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from medical_files import write_dicom
from PIL import Image
from transformers import SiglipImageProcessor

from mllm.config.hardware import CHECKOUT
from mllm.config.reading import read_config
from mllm.dataset.builder import build_dataset, build_datasets
from mllm.dataset.checking import DECODED, check_splits
from mllm.dataset.tasks import segmentation
from mllm.dataset.tasks.segmentation import read_labels
from mllm.errors import ConfigError, DataError
from mllm.models.encoding.views import ViewEncoder
from mllm.registry import DATASETS
from mllm.structures import BOX

TASKS = (
    "DetectionDataset",
    "PresenceDataset",
    "CountingDataset",
    "MultiLabelDataset",
    "ClassificationFolderDataset",
    "SegmentationDataset",
    "RegressionDataset",
)


@pytest.fixture
def table(tmp_path):
    """Return a function that writes rows about one image of 40 x 20 pixels, and the path of the table."""

    def write(*rows):
        Image.fromarray(np.arange(800, dtype=np.uint8).reshape(20, 40)).save(tmp_path / "a.png")
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"image": "a.png", **row}) + "\n" for row in rows))
        return path

    return write


def answers(type, **options):
    data = build_dataset(dict(type=type, **options))
    return [data.sample(index).turns[-1].text for index in range(len(data))]


@pytest.mark.parametrize("name", TASKS)
def test_a_miniature_can_be_read(name, tmp_path):
    options = DATASETS.find(name).miniature(tmp_path / "mini", 4)
    data = build_dataset(dict(type=name, **options))
    check_splits({"train": data})
    assert len(data) == 4
    for index in range(4):
        sample = data.sample(index)
        assert sample.turns == data.sample(index).turns and len(sample.images) == 1
        assert "<label" not in sample.turns[0].text and "<none>" not in sample.turns[0].text


def test_detection_sorts_boxes_and_answers_none(table):
    path = table(
        {"label": "cells", "boxes": [[20, 9, 30, 12], [5, 2, 8, 4], [1, 2, 3, 4]]}, {"label": "cells", "boxes": []}
    )
    data = build_dataset(dict(type="DetectionDataset", data_path=str(path)))
    sample = data.sample(0)
    assert [mark.box for mark in sample.marks] == [(1, 2, 3, 4), (5, 2, 8, 4), (20, 9, 30, 12)]
    assert sample.turns[1].text == BOX and sample.turns[1].marks == ((0, 1, 2),)
    assert data.sample(1).turns[1].text == "none" and not data.sample(1).marks


@pytest.mark.parametrize(
    ("form", "box"), [("xyxy", [10, 5, 30, 15]), ("xywh", [10, 5, 20, 10]), ("normalized", [0.25, 0.25, 0.75, 0.75])]
)
def test_the_form_of_boxes_is_named(table, form, box):
    path = table({"label": "cell", "boxes": [box], "img_path": "a.png", "expression": "the cell", "bbox": box})
    for type in ("DetectionDataset", "RECDataset"):
        data = build_dataset(dict(type=type, data_path=str(path), box=form))
        assert data.sample(0).marks[0].box == (10, 5, 30, 15)


@pytest.mark.parametrize(
    ("form", "box", "message"),
    [
        ("xyxy", [10, 5, 50, 15], "exceeds its image of 40 x 20 pixels.*box='xywh' or box='normalized'"),
        ("normalized", [0, 0, 2, 1], "has a number above 1; this dataset reads x1 y1 x2 y2 as fractions"),
        ("xyxy", [10, 5, 10, 15], "has no area in its image"),
        ("xywh", [10, 5, 3], "must contain four numbers"),
    ],
)
def test_impossible_boxes_are_refused_with_their_row(table, form, box, message):
    path = table({"label": "cell", "boxes": [box]})
    data = build_dataset(dict(type="DetectionDataset", data_path=str(path), box=form))
    with pytest.raises(DataError, match=f"rows.jsonl, line 1: .*{message}"):
        check_splits({"train": data})


def test_counts_presence_and_measurements_are_parsed_exactly(table):
    path = table({"label": "cells", "count": "3", "present": 1, "value": "12.34"})
    assert answers("CountingDataset", data_path=str(path)) == ["3"]
    assert answers("PresenceDataset", data_path=str(path)) == ["yes"]
    data = build_dataset(dict(type="RegressionDataset", data_path=str(path), unit="mm", decimals=2, measure="width"))
    assert data.sample(0).turns[1].text == "12.34 mm" and data.measures(0) == {"width": 12.34}


@pytest.mark.parametrize(
    ("options", "measures"),
    [(dict(type="CountingDataset", labels=["cells"]), {"n": 3.0}), (dict(type="RegressionDataset"), {"n": 12.34})],
)
def test_a_measure_head_reads_counts_and_measurements(table, options, measures):
    data = build_dataset(dict(data_path=str(table({"count": 3, "value": "12.34"})), measure="n", **options))
    encoder = ViewEncoder(SiglipImageProcessor(size={"height": 8, "width": 8}), views=["image"], measures=["n"])
    encoded = encoder.encode(data.sample(0))
    assert encoded.student["pixel_values"].shape == (1, 3, 8, 8)
    assert (
        encoded.targets["measures"].tolist() == pytest.approx(list(measures.values())) and data.measures(0) == measures
    )


def test_a_count_that_a_measure_head_learns_is_that_of_one_label(table):
    options = dict(type="CountingDataset", data_path=str(table({"count": 3})), measure="n")
    for labels, count in ((None, 0), (["cells", "nuclei"], 2)):
        with pytest.raises(ConfigError, match=f"measure='n' is the count of one label, and labels has {count}"):
            build_dataset(dict(options, labels=labels))


@pytest.mark.parametrize(
    ("type", "row", "options", "message"),
    [
        ("CountingDataset", {"label": "cells", "count": 2.5}, {}, "'count' must be an integer"),
        ("CountingDataset", {"label": "cells", "count": -1}, {}, "'count' must be an integer"),
        ("CountingDataset", {"count": 1}, {}, "'label' is empty"),
        ("CountingDataset", {"label": "cells", "count": 10**400}, {}, "'count' must be a number"),
        ("DetectionDataset", {"label": ["cell"], "boxes": []}, {}, "'label' is not a text"),
        ("PresenceDataset", {"label": "cells", "present": "perhaps"}, {}, "'present' must be yes or no"),
        ("CountingDataset", {"label": "cell", "count": 1}, {"labels": ["cells"]}, "label 'cell' is not in labels: did"),
        ("DetectionDataset", {"label": "cell", "boxes": []}, {"labels": {"c": "d"}}, "label 'cell' is not in labels"),
        ("PresenceDataset", {"label": "cell", "present": 1}, {"labels": ["c"]}, "label 'cell' is not in labels"),
        ("RegressionDataset", {"value": "many"}, {}, "'value' must be a number, not 'many'"),
        ("RegressionDataset", {"value": 300}, {"maximum": 200.0}, "'value' is 300, above the maximum of 200;"),
        (
            "RegressionDataset",
            {"value": -3},
            {"minimum": 0.0, "unit": "mm"},
            "'value' is -3 mm, below the minimum of 0 mm",
        ),
        ("MultiLabelDataset", {"edema": 2}, {"labels": ["edema"]}, "label 'edema' must be 1, 0, -1"),
        ("MultiLabelDataset", {"edema": -1}, {"labels": ["edema"]}, "label 'edema' is -1, uncertain: choose"),
    ],
)
def test_wrong_values_are_refused_with_their_row(table, type, row, options, message):
    data = build_dataset(dict(type=type, data_path=str(table(row)), **options))
    with pytest.raises(DataError, match=f"rows.jsonl, line 1: .*{message}"):
        check_splits({"train": data})


@pytest.mark.parametrize("value", ["NA", "nan", "NULL", "n/a", "#N/A"])
def test_a_text_for_a_missing_value_is_no_absent_label(table, value):
    """A blank label was not mentioned; a text such as NA says that nobody knows."""
    data = build_dataset(dict(type="MultiLabelDataset", data_path=str(table({"edema": value})), labels=["edema"]))
    with pytest.raises(DataError, match=f"line 1: label 'edema' must be 1, 0, -1 .uncertain. or blank, not '{value}'"):
        data.sample(0)
    assert answers("MultiLabelDataset", data_path=str(table({"edema": ""}, {"edema": None})), labels=["edema"]) == [
        "none",
        "none",
    ]


@pytest.mark.parametrize(
    ("name", "row", "options", "complete"),
    [
        ("MultiLabelDataset", {"A": 1, "B": 0}, dict(per="label", labels=["A", "B"]), dict(per="label", labels=["A"])),
        ("MultiLabelDataset", {"A": 1, "B": 0}, dict(per="label", labels=["A", "B"]), dict(labels=["A", "B"])),
        ("PresenceDataset", {"label": "A", "present": 1}, dict(labels=["A", "B"]), dict(labels=["A"])),
        ("CountingDataset", {"label": "A", "count": 1}, {}, dict(labels={"A": "lesions"})),
        ("DetectionDataset", {"label": "A", "boxes": []}, dict(labels=["A", "B"]), dict(labels=["A"])),
        ("RegressionDataset", {"value": 1}, None, dict(label="width")),
    ],
)
def test_a_template_without_the_label_is_for_one_label(table, name, row, options, complete):
    common = dict(type=name, data_path=str(table(row)), template_string="Is the image normal?")
    assert build_dataset({**common, **complete}).sample(0).turns[0].text == "<image> Is the image normal?"
    if options is not None:
        sentence = "has no <label>, without which the question is incomplete, unless labels has one label"
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            build_dataset({**common, **options})
        asked = build_dataset({**common, **options, "template_string": "Is <label> there?"}).sample(0).turns[0].text
        assert asked == "<image> Is A there?"


def test_a_template_of_masks_without_the_label_is_for_one_label(tmp_path):
    options = dict(DATASETS.find("SegmentationDataset").miniature(tmp_path, 2), type="SegmentationDataset")
    options["template_string"] = "Segment it."
    assert build_dataset({**options, "labels": "lesions"}).sample(0).turns[0].text == "<image> Segment it."
    assert len(build_dataset({**options, "labels": {255: "lesions"}})) == 2
    for labels in ({"labels": {0: "air", 255: "lesions"}}, {"labels": None, "naming": "biomedparse"}):
        with pytest.raises(ConfigError, match="has no <label>, without which"):
            build_dataset({**options, **labels})


def test_labels_are_columns_and_uncertain_ones_are_treated_as_named(table):
    path = str(table({"edema": 1, "mass": -1, "nodule": ""}, {"edema": 0.0, "mass": 0, "nodule": None}))
    labels = ["edema", "mass", "nodule"]
    common = dict(type="MultiLabelDataset", data_path=path, labels=labels)
    assert answers(**common, uncertain="zeros") == ["edema", "none"]
    assert answers(**common, uncertain="ones", none="healthy") == ["edema; mass", "healthy"]
    assert answers(**common, uncertain="ones", per="label") == ["yes", "yes", "no", "no", "no", "no"]
    data = build_dataset(dict(common, uncertain="ignore", per="label"))
    assert len(data) == 5 and data.describe(1).endswith("line 1 (nodule)")
    with pytest.raises(ConfigError, match="uncertain='ignore' leaves out single labels"):
        build_dataset(dict(common, uncertain="ignore"))
    with pytest.raises(ConfigError, match="has no column 'oedema': did you mean 'edema'"):
        build_dataset(dict(common, labels=["oedema"]))
    later = build_dataset(dict(common, data_path=str(table({"edema": 1, "mass": 0, "nodule": 0}, {"edema": 1}))))
    with pytest.raises(DataError, match="line 2: field 'mass' is missing"):
        later.inspect(1)


def test_a_broken_first_annotation_is_an_error_of_its_row(tmp_path):
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / name).mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation>")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox>"
    xml = f"<annotation><filename>b.png</filename><object><name>cell</name>{box}</object></annotation>"
    (tmp_path / "Annotations" / "b.xml").write_text(xml)
    Image.new("RGB", (8, 8), (9, 90, 9)).save(tmp_path / "JPEGImages" / "b.png")
    data = build_dataset(dict(type="MultiLabelDataset", data_path=str(tmp_path)))
    assert data.sample(1).turns[1].text == "cell" and data.group(1) == "b.png"
    named = build_dataset(dict(type="MultiLabelDataset", data_path=str(tmp_path), patient="(.)[.]png"))
    assert named.group(1) == "b"
    with pytest.raises(DataError, match=r"a.xml: not valid XML"):
        data.sample(0)


def test_folders_are_classes_and_their_names_have_the_patient(tmp_path):
    for name in ("train/benign/P1_a.png", "train/malignant/P2_a.png", "train/malignant/P2_b.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    (tmp_path / "train" / "benign" / "Thumbs.db").write_text("x")
    options = dict(type="ClassificationFolderDataset", data_path=str(tmp_path), split="train")
    data = build_dataset(dict(options, labels={"malignant": "a malignant lesion"}, patient=r"(P\d+)_"))
    assert [data.group(index) for index in range(len(data))] == ["P2", "P2"]
    shutil.copytree(tmp_path / "train", tmp_path / "train_mask", ignore=shutil.ignore_patterns("*.db"))
    masks = dict(type="SegmentationDataset", data_path=str(tmp_path / "train"), labels="lesion", patient=r"(P\d+)_")
    segmentation = build_dataset(masks)
    assert [segmentation.group(index) for index in range(3)] == ["P1", "P2", "P2"]
    assert data.sample(0).turns[1].text == "a malignant lesion"
    assert build_dataset(options).summary()["images by class"] == {"benign": 1, "malignant": 2}
    with pytest.raises(ConfigError, match="has no folder 'bening': did you mean 'benign'"):
        build_dataset(dict(options, labels=["bening"]))
    with pytest.raises(DataError, match="is not a folder: did you mean 'train'"):
        build_dataset(dict(options, split="trian"))
    with pytest.raises(DataError, match="does not match the path benign/P1_a.png"):
        check_splits({"train": build_dataset(dict(options, patient=r"(X\d+)_"))})


def masks(tmp_path, **arrays):
    for name, values in arrays.items():
        for folder, pixels in (("images", np.full((4, 6, 3), 99)), ("images_mask", values)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(tmp_path / folder / f"{name}.png")
    return str(tmp_path / "images")


def test_pixel_values_of_a_mask_are_structures(tmp_path):
    values = np.zeros((4, 6))
    values[1:3, 2:5] = 2
    path = masks(tmp_path, a=values)
    data = build_dataset(dict(type="SegmentationDataset", data_path=path, labels={1: "liver", 2: "tumor"}))
    assert [data.sample(index).turns[1].text for index in range(2)] == ["none", BOX]
    mark = data.sample(1).marks[0]
    assert mark.box == (2, 1, 5, 3) and np.array_equal(mark.mask, values == 2)
    assert len(build_dataset(dict(type="SegmentationDataset", data_path=path, labels="organ", absent=False))) == 1
    with pytest.raises(ConfigError, match="no mask in .*images_mask has the pixel value 3; the masks have 0, 2"):
        build_dataset(dict(type="SegmentationDataset", data_path=path, labels={3: "spleen"}))
    with pytest.raises(ConfigError, match="labels is missing: name the structure"):
        build_dataset(dict(type="SegmentationDataset", data_path=path))


def test_masks_of_another_size_absent_masks_and_colors_are_refused(tmp_path):
    path = masks(tmp_path, a=np.zeros((5, 6)), c=np.eye(4, 6)[..., None] * [1, 2, 3])
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "b.png")
    data = build_dataset(dict(type="SegmentationDataset", data_path=path, labels="organ"))
    for index, message in enumerate(
        ("has 6 x 5 pixels, its image 6 x 4", "it has no mask in", "has colors: a mask needs one channel")
    ):
        with pytest.raises(DataError, match=f"/{'abc'[index]}.png: .*{message}"):
            data.sample(index)


def test_the_check_of_rows_compares_sizes_and_does_not_decode_masks(tmp_path, monkeypatch):
    path = masks(tmp_path, **{f"a{number:02}": np.eye(4, 6) for number in range(40)})
    options = dict(type="SegmentationDataset", data_path=path, labels="organ")
    decoded = []
    monkeypatch.setattr(segmentation, "read_labels", lambda mask, **options: decoded.append(mask) or read_labels(mask))
    report = check_splits({"train": build_dataset(options)}).reports["train"]
    assert report.answers.rows == report.answers.contents["mask"] == 40 and 0 < len(decoded) <= DECODED
    before = report.content
    masks(tmp_path, a07=np.zeros((4, 7)))
    with pytest.raises(DataError, match=r"a07.png: mask .*a07.png has 7 x 4 pixels, its image 6 x 4"):
        check_splits({"train": build_dataset(options)})
    masks(tmp_path, a07=np.arange(24).reshape(4, 6) % 2)
    assert check_splits({"train": build_dataset(options)}).reports["train"].content != before
    Image.new("F", (6, 4)).save(tmp_path / "images_mask" / "a07.tif")
    (tmp_path / "images_mask" / "a07.png").unlink()
    with pytest.raises(DataError, match="has pixels of mode F: labels must be integers"):
        check_splits({"train": build_dataset(options)})


def test_masks_without_an_image_are_counted(tmp_path, caplog):
    path = masks(tmp_path, a=np.ones((4, 6)), b=np.ones((4, 6)), c=np.ones((4, 6)))
    for name in "bc":
        (tmp_path / "images" / f"{name}.png").unlink()
    assert len(build_dataset(dict(type="SegmentationDataset", data_path=path, labels="organ"))) == 1
    assert "2 masks have no image, for example" in caplog.text and "b.png" in caplog.text


def test_names_of_biomedparse_have_the_target(tmp_path):
    for folder, names in (
        ("train", ["s1_CT_abdomen.png", "s2_CT_abdomen.png"]),
        ("train_mask", ["s1_CT_abdomen_liver.png", "s1_CT_abdomen_left+kidney.png"]),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("L", (6, 4), 255).save(tmp_path / folder / name)
    options = dict(type="SegmentationDataset", data_path=str(tmp_path / "train"), naming="biomedparse")
    data = build_dataset(options)
    assert ["left kidney" in data.sample(0).turns[0].text, "liver" in data.sample(1).turns[0].text] == [True, True]
    with pytest.raises(ConfigError, match="no mask in .* has the target 'spleen'"):
        build_dataset(dict(options, labels=["spleen"]))
    Image.new("L", (6, 4), 255).save(tmp_path / "train_mask" / "s3_CT_abdomen_liver.png")
    report = check_splits({"train": build_dataset(options)}, skip=True).reports["train"]
    fault = f"it is the mask of no image in {tmp_path / 'train'}: it must be named IMAGE_target.png"
    assert list(report.skipped) == [f"{tmp_path / 'train_mask' / 's3_CT_abdomen_liver.png'}: {fault}"]
    assert report.answers.rows == 2


def test_columns_name_the_fields_of_any_table(table):
    path = str(table({"img": "a.png", "text": "Is it?", "label": "yes", "subject": 7}))
    columns = dict(image="img", question="text", answer="label", patient="subject")
    data = build_dataset(dict(type="VQADataset", data_path=path, columns=columns))
    assert data.sample(0).turns[1].text == "yes" and data.group(0) == "7"
    data = build_dataset(dict(type="VQADataset", data_path=path, columns=dict(columns, answer="lable")))
    with pytest.raises(DataError, match=r"line 1: columns\['answer'\] is 'lable', .*did you mean 'label'"):
        check_splits({"train": data})


def test_real_blood_smears_are_detected_counted_and_labeled(shared_data):
    bccd = dict(data_path=str(shared_data / "bccd"), split="test", empty_boxes="drop")
    names = dict(RBC="red blood cells", WBC="white blood cells", Platelets="platelets")
    detection = build_dataset(dict(bccd, type="DetectionDataset", labels=names))
    counting = build_dataset(dict(bccd, type="CountingDataset", labels=names))
    presence = build_dataset(dict(bccd, type="PresenceDataset", labels=names))
    assert len(detection) == len(counting) == len(presence) == 3 * 72
    check_splits({"test": detection})
    total = Counter()
    for index in range(len(detection)):
        marks, count = detection.inspect(index).marks, counting.inspect(index).turns[1].text
        assert len(marks) == int(count) and presence.inspect(index).turns[1].text == ("yes" if marks else "no")
        total[counting.records[index]["label"]] += len(marks)
    assert total == Counter(detection.annotations.counts())
    whole = build_dataset(dict(bccd, type="DetectionDataset", labels=names, per="image"))
    assert whole.sample(0).turns[1].text.splitlines()[2] in ("platelets: none", f"platelets: {BOX}")
    labels = build_dataset(dict(bccd, type="MultiLabelDataset", labels=names))
    assert len(labels) == 72 and labels.inspect(0).turns[1].text.startswith("red blood cells")


@pytest.mark.parametrize(
    ("type", "questions", "answer"),
    [
        ("DetectionDataset", 3, BOX),
        ("CountingDataset", 3, "12"),
        ("PresenceDataset", 3, "yes"),
        ("MultiLabelDataset", 1, "red blood cells; white blood cells; platelets"),
    ],
)
def test_the_documented_config_of_blood_cells_reads_the_published_splits_for_four_tasks(
    type, questions, answer, shared_data, tmp_path, monkeypatch
):
    document = (CHECKOUT / "config" / "README.md").read_text()
    text = re.search(r"```python\n(# blood_cells.py\n.*?)```", document, re.S)[1]
    assert text.count("\n") < 30
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(CHECKOUT / "config")
    (tmp_path / "data").symlink_to(shared_data)
    (tmp_path / "blood_cells.py").write_text(text.replace("DetectionDataset", type, 1))
    splits = build_datasets(read_config("blood_cells.py").data_args)
    assert {name: len(data) for name, data in splits.items()} == {
        name: images * questions for name, images in (("train", 205), ("validation", 87), ("test", 72))
    }
    test = splits["test"]
    assert any(test.inspect(index).turns[1].text == answer for index in range(len(test)))


def test_samples_have_the_pixel_spacing_of_their_files(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images_mask").mkdir()
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    write_dicom(tmp_path / "images" / "a.dcm", pixels, PixelSpacing=[0.5, 0.5])
    Image.fromarray(pixels).save(tmp_path / "images" / "b.png")
    for name in "ab":
        Image.fromarray((pixels > 9).astype(np.uint8)).save(tmp_path / "images_mask" / f"{name}.png")
    options = dict(type="SegmentationDataset", data_path=str(tmp_path / "images"), labels="organ")
    data = build_dataset(options)
    assert [data.sample(index).spacings for index in range(2)] == [((0.5, 0.5),), ()]
    resized = build_dataset({**options, "transforms": [dict(type="Resize", size=(3, 8))]})
    assert resized.sample(0).spacings == ((1.0, 0.25),)
