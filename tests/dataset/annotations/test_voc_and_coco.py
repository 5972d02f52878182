"""Annotations of Pascal VOC and COCO, compared with files written by hand, pycocotools and real blood smears."""

import contextlib
import io
import json
import tracemalloc
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mllm.dataset.annotations.files import read_annotations
from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits
from mllm.dataset.tasks.annotated import DetectionDataset
from mllm.errors import ConfigError, DataError

OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture
def voc(tmp_path):
    """Return a function that writes a VOC folder with one annotation per text of objects, and its path."""

    def write(**objects):
        root = tmp_path / "voc"
        for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for name, text in objects.items():
            xml = f"<annotation><filename>{name}.jpg</filename>{text}</annotation>"
            (root / "Annotations" / f"{name}.xml").write_text(xml)
            Image.new("RGB", (64, 48), (90, 10, 10)).save(root / "JPEGImages" / f"{name}.jpg")
        (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(objects) + "\n")
        return root

    return write


def coco(tmp_path, **changes):
    data = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "categories": [{"id": 3, "name": "cell"}, {"id": 1, "name": "nucleus"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0.5, 2, 3, 4], "area": 12, "iscrowd": 0},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 1},
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({**data, **changes}))
    return path


@pytest.mark.parametrize("per", ["image", "label"])
def test_a_change_of_a_row_that_was_read_is_not_kept(tmp_path, per):
    records = DetectionDataset(coco(tmp_path), tmp_path, per=per).records
    expected = json.dumps(records[0])
    changed = records[0]
    (changed.get("objects") or changed)["boxes" if per == "label" else "cell"].append("changed")
    assert json.dumps(records[0]) == expected


def test_pixels_of_voc_are_counted_from_1_and_the_last_is_included(voc):
    root = voc(a=OBJECT.format("cell", 1, 1, 64, 48) + OBJECT.format("cell", 3, 4, 4, 9))
    images = read_annotations(root, "train").images
    assert [item.box for item in images[0].objects] == [(0, 0, 64, 48), (2, 3, 4, 9)]
    assert images[0].image == "a.jpg" and images[0].location.endswith("Annotations/a.xml")


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (OBJECT.format("cell", 9, 9, 9, 9), r"a box of 'cell' has no area .*empty_boxes='drop'"),
        (OBJECT.format("cell", 9, 9, 3, 20), r"object 1 \(cell\) has reversed corners \(9, 9, 3, 20\)"),
        (OBJECT.format("cell", "x", 9, 3, 20), r"object 1 \(cell\) needs the numbers xmin, ymin, xmax, ymax"),
        (OBJECT.format("", 1, 1, 3, 20), "object 1 has no name"),
        ("<object>", "not valid XML"),
    ],
)
def test_a_bad_annotation_is_an_error_of_its_image(voc, objects, message):
    images = read_annotations(voc(good=OBJECT.format("cell", 1, 1, 5, 5), bad=objects), "train").images
    assert not images[0].error
    with pytest.raises(DataError, match=message):
        raise DataError(images[1].error)


def test_boxes_without_an_area_can_be_dropped_and_are_counted(voc):
    root = voc(a=OBJECT.format("cell", 9, 9, 9, 9) + OBJECT.format("cell", 1, 1, 5, 5))
    annotations = read_annotations(root, "train", "drop")
    assert annotations.dropped == 1 and len(annotations.images[0].objects) == 1


def test_without_a_split_all_annotations_are_read_except_the_metadata_of_macos(voc):
    root = voc(b=OBJECT.format("cell", 1, 1, 5, 5), **{"a.c": OBJECT.format("cell", 1, 1, 5, 5)})
    (root / "Annotations" / "._b.xml").write_bytes(b"\0\5\x16\7")
    images = read_annotations(root, None).images
    assert [(image.image, image.location) for image in images] == [
        (f"{name}.jpg", str(root / "Annotations" / f"{name}.xml")) for name in ("a.c", "b")
    ]


def test_wrong_splits_and_folders_are_refused(voc, tmp_path):
    with pytest.raises(DataError, match="data_path .*absent does not exist"):
        DetectionDataset(tmp_path / "absent", split="train")
    root = voc(a=OBJECT.format("cell", 1, 1, 5, 5))
    with pytest.raises(DataError, match=r"trian.txt does not exist: unknown split 'trian': did you mean 'train'"):
        read_annotations(root, "trian")
    with pytest.raises(DataError, match="has no folder Annotations"):
        read_annotations(tmp_path)
    with pytest.raises(ConfigError, match="split='train' selects a list of a Pascal VOC folder"):
        read_annotations(coco(tmp_path), "train")


def test_coco_is_read_as_by_pycocotools(tmp_path):
    path = coco(tmp_path)
    annotations = read_annotations(path)
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = COCO(str(path))
    for image, identity in zip(annotations.images, (7, 8), strict=True):
        expected = []
        for item in oracle.loadAnns(oracle.getAnnIds(identity, iscrowd=False)):
            x, y, width, height = item["bbox"]
            expected.append((oracle.loadCats(item["category_id"])[0]["name"], (x, y, x + width, y + height)))
        assert [(item.label, item.box) for item in image.objects] == expected
        assert image.image == oracle.loadImgs(identity)[0]["file_name"]
    assert annotations.labels == ("cell", "nucleus") and annotations.counts() == {"cell": 1, "nucleus": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(categories=None), "'categories' must be a list of objects"),
        (dict(annotations=[3]), "'annotations' must be a list of objects"),
        (dict(images=[{"file_name": "a.png"}]), "an entry of 'images' has no id"),
    ],
)
def test_coco_files_of_another_form_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_annotations(coco(tmp_path, **changes))


@pytest.mark.parametrize(
    ("list_of", "entry", "place", "message"),
    [
        ("images", {"id": 7, "file_name": "b.png"}, "image 3", "has the id 7, which an earlier image has"),
        ("images", {"id": 9}, "image 3", "has no file_name"),
        ("annotations", {"image_id": 9, "category_id": 3}, "annotation 4", "has the image_id 9, which no image has"),
        ("annotations", {"image_id": [7], "category_id": 3}, "annotation 4", "has the image_id [7], which no image"),
        (
            "annotations",
            {"image_id": 8, "category_id": 4},
            "image 2",
            "annotation 4 has the category_id 4, which no category",
        ),
    ],
)
def test_an_inconsistent_entry_of_coco_is_an_error_of_one_row(tmp_path, list_of, entry, place, message):
    path = coco(tmp_path)
    content = json.loads(path.read_text())
    whole = len(read_annotations(path).images)
    content[list_of].append(entry)
    path.write_text(json.dumps(content))
    images = read_annotations(path).images
    (faulty,) = [image for image in images if image.error]
    assert faulty.location == f"{path}, {place}" and message in faulty.error and not faulty.objects
    assert len(images) == whole + (list_of == "images" or place.startswith("annotation"))
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48)).save(tmp_path / name)
    rows = check_splits({"train": build_dataset(dict(type="DetectionDataset", data_path=str(path)))}, skip=True)
    ((_, row),) = rows.skipped()
    assert row.startswith(f"{path}, {place}: ") and message in row


@pytest.mark.parametrize("ids", [(7, 3, 5), ("7", "b", "a"), (7, "7", 1 << 70)])
def test_ids_of_coco_are_numbers_or_texts(tmp_path, ids):
    images = [{"id": identity, "file_name": f"{number}.png"} for number, identity in enumerate(ids)]
    boxes = [{"image_id": ids[number], "category_id": 3, "bbox": [0, 0, 1, number + 1]} for number in (2, 0, 2, 1)]
    found = read_annotations(coco(tmp_path, images=images, annotations=boxes)).images
    assert [[item.box[3] for item in image.objects] for image in found] == [[1], [2], [3, 3]]
    for changes, place, message in (
        (dict(annotations=[*boxes, {**boxes[0], "image_id": 8}]), "annotation 5", "the image_id 8, which no image has"),
        (dict(images=[*images, images[1]]), "image 4", f"has the id {ids[1]!r}, which an earlier image has"),
    ):
        path = coco(tmp_path, **{"images": images, "annotations": boxes, **changes})
        found = read_annotations(path).images
        assert [[item.box[3] for item in image.objects] for image in found] == [[1], [2], [3, 3], []]
        assert found[3].location == f"{path}, {place}" and message in found[3].error


def test_annotations_in_any_order_take_little_memory(tmp_path):
    count, polygon = 3000, [[0.5 * number for number in range(100)]]
    rng = np.random.default_rng(0)
    items = [
        {"image_id": int(image), "category_id": 3, "bbox": [1, 2, 3, int(image) + 1], "segmentation": polygon}
        for image in rng.permutation(np.repeat(np.arange(count), 2))
    ]
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(count)]
    path = coco(tmp_path, images=images, annotations=items)
    del items, images
    tracemalloc.start()
    data = DetectionDataset(path, tmp_path, per="image")
    memory, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert memory < 250 * count and peak < path.stat().st_size
    assert len(data) == count and data.records[1234]["objects"] == {"cell": [(1, 2, 4, 1237)] * 2, "nucleus": []}
    assert data.records.describe(-1) == f"{path}, image {count}"


def test_an_image_with_a_crowd_is_not_asked_for_boxes_and_counts_of_its_label(tmp_path):
    boxes = [dict(image_id=7, category_id=label, bbox=[1, 2, 9, 8], iscrowd=int(label == 1)) for label in (1, 3)]
    for name in "ab":
        Image.new("RGB", (64, 48)).save(tmp_path / f"{name}.png")
    options = dict(data_path=str(coco(tmp_path, annotations=boxes)))
    rows = {
        name: list(build_dataset(dict(options, type=f"{name}Dataset")).records)
        for name in ("Detection", "Counting", "Presence", "MultiLabel")
    }
    assert [(row["image"], row["label"]) for row in rows["Detection"]] == [
        ("a.png", "cell"),
        ("b.png", "cell"),
        ("b.png", "nucleus"),
    ]
    assert [row["count"] for row in rows["Counting"]] == [1, 0, 0]
    assert [row["present"] for row in rows["Presence"]] == [True, True, False, False]
    assert [(row["cell"], row["nucleus"]) for row in rows["MultiLabel"]] == [(1, 1), (0, 0)]
    by_image = build_dataset(dict(options, type="DetectionDataset", per="image"))
    assert [row["image"] for row in by_image.records] == ["b.png"]
    assert by_image.summary()["images with crowds, of which no boxes and counts are asked"] == 1


def test_an_image_of_another_size_than_the_annotated_one_is_refused(tmp_path, voc):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    images = [{"id": 7, "file_name": "a.png", "width": 640, "height": 480}]
    message = "image 1: image has 64 x 48 pixels, but its boxes are those of 640 x 480 pixels: use the images that were"
    with pytest.raises(DataError, match=message):
        DetectionDataset(coco(tmp_path, images=images), tmp_path).sample(0)
    size = "<size><width>{}</width><height>{}</height><depth>3</depth></size>"
    objects = OBJECT.format("cell", 1, 1, 9, 9)
    data = DetectionDataset(
        voc(a=size.format(48, 64) + objects, b=size.format(64, 48) + objects, c=size.format(0, 0) + objects)
    )
    with pytest.raises(DataError, match="a.xml: image has 64 x 48 pixels, but its boxes are those of 48 x 64 pixels"):
        data.sample(0)
    assert [data.sample(index).marks[0].box for index in (1, 2)] == [(0, 0, 9, 9)] * 2


def test_equal_boxes_of_an_image_are_counted(voc, caplog):
    data = DetectionDataset(voc(a=OBJECT.format("cell", 1, 1, 9, 9) * 2, b=OBJECT.format("cell", 1, 1, 9, 9)))
    assert data.summary()["boxes that occur twice in an image"] == 1
    assert "voc: 1 boxes are equal to another box of their image and label" in caplog.text


@pytest.mark.parametrize(
    "bbox", [[1, 2, 3], [1, 2, -3, 4], [1, 2, "nan", 4], [1, 2, 10**400, 4], [True, 2, 3, 4], None]
)
def test_an_impossible_box_of_coco_is_an_error_of_its_image(tmp_path, bbox):
    first, second = read_annotations(
        coco(tmp_path, annotations=[{"image_id": 7, "category_id": 3, "bbox": bbox}])
    ).images
    assert "annotation 1" in first.error and not second.error


def test_the_message_about_a_box_outside_its_image_names_no_option_that_is_refused(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    path = coco(tmp_path, annotations=[{"image_id": 7, "category_id": 3, "bbox": [50, 2, 30, 9]}])
    fault = r"image 1: field 'boxes\[0\]' \[50.0, 2.0, 80.0, 11.0\] exceeds its image of 64 x 48 pixels$"
    with pytest.raises(DataError, match=fault):
        DetectionDataset(path, tmp_path).sample(0)


def test_a_table_is_not_read_as_annotations(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"image": "a.png"}]')
    assert read_annotations(path) is None


def test_real_blood_smears_have_the_published_numbers_of_cells(shared_data):
    root = shared_data / "bccd"
    annotations = read_annotations(root, None, "drop")
    names = Counter()
    for file in (root / "Annotations").glob("*.xml"):
        names.update(element.text for element in ElementTree.parse(file).getroot().iter("name"))
    counts = Counter(annotations.counts())
    assert annotations.dropped == 2 and counts.total() + annotations.dropped == names.total() == 4155 + 372 + 361
    assert counts["WBC"] == names["WBC"] == 372 and counts["Platelets"] == names["Platelets"] == 361
    sizes = [len(read_annotations(root, split, "drop").images) for split in ("train", "val", "test")]
    assert sizes == [205, 87, 72]
