"""The benchmark of blood cells on a miniature of BCCD: its runs, its figures and its refusal."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from mllm.config.reading import read_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "bench"))

import bccd  # noqa: E402
import bccd_work  # noqa: E402

OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
RED_CELLS = {"train": (1, 2, 6), "val": (1,), "test": (2, 8, 0, 1)}
"""Number of red cells of each image. Every image has a white cell."""


@pytest.fixture
def miniature(tmp_path):
    root = tmp_path / "BCCD"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for split, counts in RED_CELLS.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{split}{i}\n" for i in range(len(counts))))
        for number, count in enumerate(counts):
            objects = OBJECT.format("WBC", *((401, 301, 480, 400) if number == 3 else (101, 101, 300, 300)))
            objects += "".join(OBJECT.format("RBC", 1 + 40 * i, 301, 80 + 40 * i, 400) for i in range(count))
            name = f"{split}{number}"
            size = "<size><width>640</width><height>480</height></size>"
            xml = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
            (root / "Annotations" / f"{name}.xml").write_text(xml)
            noise = np.random.default_rng(number).integers(150, 250, (480, 640, 3), np.uint8)
            Image.fromarray(noise).save(root / "JPEGImages" / f"{name}.jpg")
    return root


def test_the_runs_of_a_miniature_give_the_figures_of_the_table(miniature, tmp_path):
    folder = tmp_path / "runs"
    bccd_work.prepare(miniature, folder)
    tasks = ("counting", "detection_heads")
    for task in tasks:
        bccd_work.train(task, 0, folder, steps=2)
    assert not list(folder.glob("models/*/*.safetensors")), "the models have no weights to start from"
    rows = bccd.figures_of(folder, tasks, seeds=1)
    mean, median, white = rows
    predictions = [json.loads(line) for line in (folder / "counting-0" / "predictions.jsonl").read_text().splitlines()]
    errors = [abs(row["measures"]["cells"] - count) for row, count in zip(predictions, RED_CELLS["test"], strict=True)]
    assert mean["mean"] == median["mean"] == pytest.approx(np.mean(errors))
    assert (mean["baseline_value"], median["baseline_value"]) == (2.75, 2.25)  # of 3 and 2 for 2, 8, 0 and 1
    assert mean["difference"] == pytest.approx(np.mean(errors) - 2.75)
    # Three images of four have the median box of the training images; in the last one it has an IoU of 0.
    assert white["baseline_value"] == pytest.approx(0.75, abs=0.01)
    lines = bccd.table(rows).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1


def test_the_presence_of_platelets_is_ranked_by_their_predicted_number(tmp_path):
    numbers, counts = [0.2, 0.6, 0.1, 3.0, 0.7], [0, 2, 1, 4, 0]
    (tmp_path / "presence-0").mkdir()
    rows = [
        dict(
            source="x",
            reference="",
            prediction="",
            measures=dict(platelets=number),
            reference_measures=dict(platelets=n),
        )
        for number, n in zip(numbers, counts, strict=True)
    ]
    (tmp_path / "presence-0" / "predictions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "data").mkdir()
    owners = [1, 1, 2, 4]  # three of four training images have platelets
    train = dict(
        images=[dict(id=number) for number in (1, 2, 3, 4)],
        annotations=[dict(image_id=owner, category_id=3) for owner in owners],
        categories=[dict(id=3, name="Platelets")],
    )
    (tmp_path / "data" / "train.json").write_text(json.dumps(train))
    area, accuracy = bccd.figures_of(tmp_path, ["presence"], seeds=1)
    assert area["mean"] == pytest.approx(roc_auc_score(np.array(counts) > 0, numbers)) and area["baseline_value"] == 0.5
    assert (accuracy["mean"], accuracy["baseline_value"]) == (pytest.approx(3 / 5), pytest.approx(3 / 5))


def test_a_folder_without_the_images_is_refused_with_their_source(tmp_path):
    with pytest.raises(SystemExit, match="nowhere is not the folder BCCD of https://github.com/Shenggan/BCCD_Dataset"):
        bccd.main([str(tmp_path / "nowhere")])


@pytest.mark.parametrize("task", bccd_work.TASKS)
def test_the_config_of_a_task_is_valid_and_evaluates_on_unchanged_test_images(task):
    config = read_config(bccd_work.CONFIGS / f"{task}.py").data_args
    assert Path(config.train["data_path"]).name == "train.json" and config.train["transforms"]
    assert Path(config.test["data_path"]).name == "test.json" and "transforms" not in config.test
    assert config.train["labels"] == config.test["labels"] and len(config.test["labels"]) == 1
