"""Tests of the reader of the original files of RefCOCO."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mllm.dataset.builder import build_dataset
from mllm.dataset.tables.records import ERROR
from mllm.dataset.tables.refer import read_plain_pickle
from mllm.errors import ConfigError, DataError

POLYGON = [10.0, 10.0, 30.0, 10.0, 30.0, 25.0, 10.0, 25.0]


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "COCO_train2014_000000000007.jpg")
    refs = [
        {
            "ref_id": 1,
            "ann_id": 5,
            "image_id": 7,
            "split": split,
            "sentences": [{"sent": text} for text in texts],
        }
        for split, texts in (("train", ["left man", "the man"]), ("testA", ["man in red"]))
    ]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    instances = {
        "images": [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg"}],
        "annotations": [{"id": 5, "bbox": [10, 10, 20, 15], "segmentation": [POLYGON]}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    return tmp_path


def dataset(folder, **options):
    return build_dataset(
        dict(type="ReferDataset", data_path=str(folder / "refs(unc).p"), image_folder=str(folder), **options)
    )


def test_every_sentence_is_a_row_with_its_box_and_mask(folder):
    data = dataset(folder)
    assert len(data) == 2 and len(dataset(folder, split="testA")) == 1
    sample = data.sample(0)
    assert "left man" in sample.turns[0].text and sample.turns[1].text == "Answer: <box> ."
    assert sample.marks[0].box == (10, 10, 30, 25)
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([POLYGON], 60, 80))).astype(bool)
    assert np.array_equal(sample.marks[0].mask, expected) and expected.sum() > 200
    assert data.group(0) == data.group(1) == "COCO_train2014_000000000007.jpg"
    assert dataset(folder, task="REC").sample(1).marks[0].mask is None


class Malicious:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    "value",
    [Malicious(), [Malicious()], np.float64(1.0), {"a": np.zeros(2)}],
    ids=["object", "list", "number", "array"],
)
def test_a_pickle_with_other_objects_than_containers_is_refused(tmp_path, value, capsys):
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match=r"refs.p is refused: it contains .*; a pickle may only contain dicts, lists"):
        read_plain_pickle(path)
    assert "run" not in capsys.readouterr().out


def test_containers_of_python_2_and_3_are_read(tmp_path):
    value = [{"a": (1, 2.5, None, True), "b": {"x", "y"}, "c": b"raw".decode()}]
    for protocol in (0, 2, 4):
        (tmp_path / "refs.p").write_bytes(pickle.dumps(value, protocol=protocol))
        assert read_plain_pickle(tmp_path / "refs.p") == value


def test_files_that_do_not_match_are_refused(folder):
    with pytest.raises(DataError, match=r"has no reference of split 'test'; it has testA, train"):
        dataset(folder, split="test")
    with pytest.raises(ConfigError, match="task must be 'REC' or 'RES', not 'REG'"):
        dataset(folder, task="REG")
    (folder / "instances.json").write_text("{}")
    with pytest.raises(DataError, match=r"instances.json is not a file of COCO instances"):
        dataset(folder)
    (folder / "refs(unc).p").write_bytes(b"no pickle")
    with pytest.raises(DataError, match=r"refs\(unc\).p is refused"):
        dataset(folder)


def test_a_damaged_annotation_or_reference_is_an_error_of_its_reference(folder):
    rows = [row["img_path"] for row in dataset(folder).records]
    instances = json.loads((folder / "instances.json").read_text())
    references = read_plain_pickle(folder / "refs(unc).p")
    instances["annotations"] = [
        "x" if item["id"] == references[0]["ann_id"] else item for item in instances["annotations"]
    ]
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "refs(unc).p").write_bytes(pickle.dumps([*references, "x"]))
    data = dataset(folder)
    errors = [row[ERROR] for row in map(data.records.row_or_error, range(len(data))) if ERROR in row]
    assert "reference 1: " in errors[0] and "is missing in it or in" in errors[0]
    assert errors[1:] == [f"{folder / 'refs(unc).p'}, reference {len(references) + 1} must be a dict, not a str"]
    assert len(data) == len(rows) + 2 - len(references[0]["sentences"])


@pytest.mark.parametrize("power", [40, 62])
def test_a_pickle_with_an_impossible_length_is_refused(tmp_path, power):
    path = tmp_path / "refs.p"
    path.write_bytes(b"\x80\x04\x8d" + (2**power).to_bytes(8, "little") + b"a.")  # a text of so many bytes
    with pytest.raises(DataError, match="refs.p is damaged: it has an object that is larger than the memory"):
        read_plain_pickle(path)


def test_a_damaged_number_of_an_object_takes_no_memory(tmp_path):
    path = tmp_path / "refs.p"
    path.write_bytes(b"\x80\x02]r" + (2**22).to_bytes(4, "little") + b".")  # an empty list with the number 2^22
    tracemalloc.start()
    try:
        assert read_plain_pickle(path) == []
        assert tracemalloc.get_traced_memory()[1] < 2**20  # the unpickler in C takes 2^26 bytes
    finally:
        tracemalloc.stop()
