"""Data of the benchmark of the check of rows: folders with any number of rows of each kind of table.

The rows of a kind differ in image, patient and answer. The images of a kind have equal contents; they are hard links of
a few files, so that a hundred thousand of them take no space.
"""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mllm.dataset.public import chexpert, mimic_cxr

Writer = Callable[[Path, int], dict[str, Any]]
"""Function of a folder and a number of rows: it writes the data and returns the options that read them."""
WIDTH, HEIGHT = 64, 48
COCO_SIZE = 640, 480
LINKS = 10_000
"""Links to one file; file systems have a limit of some ten thousands."""
REPORT = (
    "                 FINAL REPORT\n FINDINGS: \n \n The lungs are clear. Image {}.\n \n IMPRESSION: \n \n Normal.\n"
)
_QUESTIONS = (
    "Is there a lesion in this image?",
    "Which organ is shown?",
    "Is the heart enlarged?",
    "What is abnormal?",
)
_ANSWERS = ("no", "lung", "no", "a nodule in the left upper lobe")


class Pictures:
    """Writer of image files below a folder."""

    def __init__(self, folder: Path, suffix: str = ".png", size: tuple[int, int] = (WIDTH, HEIGHT), mode: str = "RGB"):
        self.suffix, self.size, self.mode, self.count = suffix, size, mode, 0
        self.folder = self.source = folder

    def add(self, name: str) -> str:
        """Write an image file and return its name."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.count % LINKS:
            os.link(self.source, path)
        else:
            self.source = path
            Image.linear_gradient("L").resize(self.size).convert(self.mode).save(path)
        self.count += 1
        return name

    def numbered(self, number: int) -> str:
        """Write an image file in a folder of a thousand images and return its name."""
        return self.add(f"{number // 1000:03}/{number:06}{self.suffix}")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write a JSON lines file and return its path."""
    with path.open("w") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)
    return str(path)


def write_json(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write a JSON file with a list of rows and return its path."""
    path.write_text(json.dumps(list(rows)))
    return str(path)


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], delimiter: str = ",") -> str:
    """Write a CSV file and return its path."""
    with path.open("w", newline="") as file:
        writer = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, list(row), delimiter=delimiter)
                writer.writeheader()
            writer.writerow(row)
    return str(path)


def _patient(number: int) -> str:
    return f"P{number // 4:06}"


def _box(number: int) -> list[float]:
    """Return a box x1 y1 x2 y2 inside an image."""
    x, y = number * 17 % 40, number * 13 % 29
    return [x + 0.5, y + 0.25, x + 10 + number % 13, y + 8 + number % 11]


def _questions(folder: Path, rows: int) -> Iterable[dict[str, Any]]:
    pictures = Pictures(folder)
    for number in range(rows):
        question, answer = _QUESTIONS[number % 4], f"{_ANSWERS[number % 4]} {number % 50}"
        image = pictures.numbered(number)
        yield {"image": image, "question": question, "answer": answer, "patient": _patient(number), "modality": "CT"}


def _vqa_table(name: str, write_rows: Callable[..., str], **options: Any) -> Writer:
    """Return the writer of rows of `VQADataset` as a file that `write_rows` writes with the options."""

    def write(folder: Path, rows: int) -> dict[str, Any]:
        return {"type": "VQADataset", "data_path": write_rows(folder / name, _questions(folder, rows), **options)}

    return write


def vqa_parquet(folder: Path, rows: int) -> dict[str, Any]:
    """Write rows of `VQADataset` as Parquet."""
    import pyarrow
    import pyarrow.parquet

    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(_questions(folder, rows))), path)
    return {"type": "VQADataset", "data_path": str(path)}


def text_qa(folder: Path, rows: int) -> dict[str, Any]:
    """Write questions and answers without images."""
    lines = ({"question": f"{_QUESTIONS[number % 4]} {number}", "answer": f"It is {number}."} for number in range(rows))
    return {"type": "TextQADataset", "data_path": write_json_lines(folder / "rows.jsonl", lines)}


def multiple_choice(folder: Path, rows: int) -> dict[str, Any]:
    """Write multiple-choice questions without images."""
    options = ["a nodule", "an effusion", "a fracture", "no finding"]
    lines = (
        {"question": f"Patient {number}: what is most likely?", "options": options, "answer_idx": "ABCD"[number % 4]}
        for number in range(rows)
    )
    return {"type": "MultipleChoiceDataset", "data_path": write_json_lines(folder / "rows.jsonl", lines)}


def _table(
    kind: str,
    row_of: Callable[[int], dict[str, Any]],
    image: str = "image",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    **options: Any,
) -> Writer:
    """Return the writer of a table in JSON lines with an image and the values of `row_of` in each row."""

    def write(folder: Path, rows: int) -> dict[str, Any]:
        pictures = Pictures(folder, size=size)
        facts = ({image: pictures.numbered(number), "patient": _patient(number)} for number in range(rows))
        lines = ({**fact, **row_of(number)} for number, fact in enumerate(facts))
        return {"type": kind, "data_path": write_json_lines(folder / "rows.jsonl", lines), **options}

    return write


def _rec(number: int) -> dict[str, Any]:
    return {"expression": f"the nodule on the left {number % 100}", "bbox": _box(number)}


def _res(number: int) -> dict[str, Any]:
    """Return a polygon of 30 points in an image of the size of COCO, or for every fourth row its run lengths."""
    width, height = COCO_SIZE
    x, y, radius = 120 + number % 400, 120 + number % 240, 40 + number % 60
    angles = [math.tau * place / 30 for place in range(30)]
    points = [(round(x + radius * math.cos(angle), 2), round(y + radius * math.sin(angle), 2)) for angle in angles]
    segmentation: Any = [[value for point in points for value in point]]
    if number % 4 == 3:
        start, side = height * (x - radius) + y - radius, 2 * radius
        counts = [start, *[side, height - side] * (side - 1), side]
        segmentation = {"size": [height, width], "counts": [*counts, height * width - sum(counts)]}
    return {**_rec(number), "bbox": [x - radius, y - radius, 2 * radius, 2 * radius], "segmentation": segmentation}


def _several(number: int) -> dict[str, Any]:
    return {label: (number >> place) % 2 for place, label in enumerate(chexpert.LABELS)}


def coco(folder: Path, rows: int) -> dict[str, Any]:
    """Write images with two objects each as a COCO file; all labels are asked for in one question."""
    pictures = Pictures(folder)
    images, annotations = [], []
    for number in range(rows):
        images.append({"id": number, "file_name": pictures.numbered(number), "width": WIDTH, "height": HEIGHT})
        for copy in range(2):
            x1, y1, x2, y2 = _box(number + copy)
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            entry = {"id": 2 * number + copy, "image_id": number, "category_id": 1 + (number + copy) % 3}
            annotations.append({**entry, **box})
    categories = [{"id": 1 + place, "name": name} for place, name in enumerate(("RBC", "WBC", "Platelets"))]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return {"type": "DetectionDataset", "data_path": str(path), "per": "image"}


def voc(folder: Path, rows: int) -> dict[str, Any]:
    """Write images with two objects each in the layout of Pascal VOC; all labels are asked for in one question."""
    pictures = Pictures(folder / "JPEGImages", ".jpg")
    (folder / "Annotations").mkdir()
    for number in range(rows):
        objects = ""
        for copy in range(2):
            corners = zip(("xmin", "ymin", "xmax", "ymax"), map(int, _box(number + copy)), strict=True)
            box = "".join(f"<{name}>{value + 1}</{name}>" for name, value in corners)
            name = ("RBC", "WBC", "Platelets")[(number + copy) % 3]
            objects += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        image = pictures.add(f"{number:06}.jpg")
        text = f"<annotation><filename>{image}</filename>{objects}</annotation>"
        (folder / "Annotations" / f"{number:06}.xml").write_text(text)
    return {"type": "DetectionDataset", "data_path": str(folder), "per": "image"}


def mask_folders(folder: Path, rows: int) -> dict[str, Any]:
    """Write images with a mask each."""
    images, masks = Pictures(folder / "images", size=(512, 512)), Pictures(folder / "masks", size=(512, 512), mode="L")
    for number in range(rows):
        masks.add(images.numbered(number))
    paths = {"data_path": str(folder / "images"), "mask_folder": str(folder / "masks")}
    return {"type": "SegmentationDataset", **paths, "labels": "lesion"}


def biomed_parse(folder: Path, rows: int) -> dict[str, Any]:
    """Write images with the masks of two targets each, in the names of BiomedParse."""
    images = Pictures(folder / "train", size=(512, 512))
    masks = Pictures(folder / "train_mask", size=(512, 512), mode="L")
    for number in range(rows // 2):
        images.add(f"{number:06}_CT_abdomen.png")
        for target in ("liver", "left+kidney"):
            masks.add(f"{number:06}_CT_abdomen_{target}.png")
    return {"type": "SegmentationDataset", "data_path": str(folder / "train"), "naming": "biomedparse"}


def class_folders(folder: Path, rows: int) -> dict[str, Any]:
    """Write images in the folders of two classes."""
    pictures = Pictures(folder)
    for number in range(rows):
        pictures.add(f"{('benign', 'malignant')[number % 2]}/{number:06}.png")
    return {"type": "ClassificationFolderDataset", "data_path": str(folder)}


def flare(folder: Path, rows: int) -> dict[str, Any]:
    """Write questions of one data set of FLARE 2025."""
    place = folder / "training" / "Retinography" / "retino"
    pictures, entries = Pictures(place, ".jpg"), []
    for number in range(rows):
        image = pictures.add(f"imagesTr/{number:06}.jpg")
        entry = {"TaskType": "Classification", "Modality": "Retinography", "ImageName": image, "Split": "train"}
        entries.append(
            {**entry, "Question": "What is shown? Options: A: a lesion, B: none", "Answer": "AB"[number % 2]}
        )
    (place / "retino_questions_train.json").write_text(json.dumps(entries))
    return {"type": "FLAREDataset", "data_path": str(folder)}


def chest_xray14(folder: Path, rows: int) -> dict[str, Any]:
    """Write the tables and images of ChestX-ray14."""
    pictures, lines = Pictures(folder / "images"), []
    for number in range(rows):
        labels = ("No Finding", "Nodule", "Infiltration|Nodule")[number % 3]
        name = pictures.add(f"{number:08}_000.png")
        facts = {"Patient ID": number // 4, "Patient Age": 58, "Patient Gender": "M", "View Position": "PA"}
        lines.append({"Image Index": name, "Finding Labels": labels, "Follow-up #": 0, **facts})
    write_csv(folder / "Data_Entry_2017.csv", lines)
    (folder / "train_val_list.txt").write_text("\n".join(str(line["Image Index"]) for line in lines))
    return {"type": "ChestXray14Dataset", "data_path": str(folder)}


def che_xpert(folder: Path, rows: int) -> dict[str, Any]:
    """Write the table and the images of CheXpert."""
    pictures, lines = Pictures(folder, ".jpg"), []
    for number in range(rows):
        name = pictures.add(f"train/patient{number // 4:05}/study{number % 4 + 1}/view1_frontal.jpg")
        facts = {"Path": f"CheXpert-v1.0-small/{name}", "Sex": "Female", "Age": 58, "Frontal/Lateral": "Frontal"}
        values = {
            label: ("1.0", "0.0", "-1.0", "")[(number >> place) % 4] for place, label in enumerate(chexpert.LABELS)
        }
        lines.append({**facts, "AP/PA": "AP", **values})
    write_csv(folder / "train.csv", lines)
    return {"type": "CheXpertDataset", "data_path": str(folder)}


def _mimic_cxr(kind: str) -> Writer:
    def write(folder: Path, rows: int) -> dict[str, Any]:
        """Write the tables, reports and images of MIMIC-CXR-JPG."""
        pictures = Pictures(folder, ".jpg")
        splits, metadata, labels = [], [], []
        for number in range(rows):
            patient, study, image = 10_000_000 + number // 4, 50_000_000 + number, f"{number:08x}-0-0-0-0"
            place = f"files/p{patient // 1_000_000}/p{patient}/s{study}"
            pictures.add(f"{place}/{image}.jpg")
            (folder / f"{place}.txt").write_text(REPORT.format(number % 50))
            splits.append({"dicom_id": image, "study_id": study, "subject_id": patient, "split": "train"})
            metadata.append({"dicom_id": image, "subject_id": patient, "study_id": study, "ViewPosition": "PA"})
            values = {label: ("1.0", "0.0", "-1.0", "")[number % 4] for label in mimic_cxr.LABELS}
            labels.append({"subject_id": patient, "study_id": study, **values})
        for name, lines in (("split", splits), ("metadata", metadata), ("chexpert", labels)):
            write_csv(folder / f"mimic-cxr-2.0.0-{name}.csv", lines)
        return {"type": kind, "data_path": str(folder)}

    return write


def iu_xray(folder: Path, rows: int) -> dict[str, Any]:
    """Write studies of IU X-ray in the layout of R2Gen."""
    pictures, studies = Pictures(folder / "images"), []
    for number in range(rows):
        name = f"CXR{number}_IM-0001"
        image = pictures.add(f"{name}/0.png")
        studies.append({"id": name, "report": f"The lungs are clear {number % 50} .", "image_path": [image]})
    (folder / "annotation.json").write_text(json.dumps({"train": studies, "val": [], "test": []}))
    return {"type": "IUXrayDataset", "data_path": str(folder), "split": "train"}


def slake(folder: Path, rows: int) -> dict[str, Any]:
    """Write questions of SLAKE."""
    pictures, entries = Pictures(folder / "imgs", ".jpg"), []
    for number in range(rows):
        image = pictures.add(f"xmlab{number}/source.jpg")
        texts = {"question": _QUESTIONS[number % 4], "answer": _ANSWERS[number % 4], "q_lang": "en"}
        entries.append({"img_id": number, "img_name": image, **texts, "answer_type": "OPEN", "qid": number})
    (folder / "train.json").write_text(json.dumps(entries))
    return {"type": "SLAKEDataset", "data_path": str(folder)}


def vqa_rad(folder: Path, rows: int) -> dict[str, Any]:
    """Write questions of VQA-RAD."""
    pictures, entries = Pictures(folder / "VQA_RAD Image Folder", ".jpg"), []
    for number in range(rows):
        texts = {"question": _QUESTIONS[number % 4], "answer": _ANSWERS[number % 4], "answer_type": "OPEN"}
        names = {"qid": number, "phrase_type": "freeform", "image_name": pictures.add(f"synpic{number}.jpg")}
        entries.append({**names, "image_organ": "CHEST", **texts})
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(entries))
    return {"type": "VQARADDataset", "data_path": str(folder)}


def path_vqa(folder: Path, rows: int) -> dict[str, Any]:
    """Write questions of PathVQA."""
    pictures, entries = Pictures(folder / "images" / "train", ".jpg"), []
    for number in range(rows):
        image = pictures.add(f"train_{number:06}.jpg").removesuffix(".jpg")
        entries.append({"image": image, "question": _QUESTIONS[number % 4], "answer": _ANSWERS[number % 4]})
    (folder / "qas" / "train").mkdir(parents=True)
    (folder / "qas" / "train" / "train_qa.pkl").write_bytes(pickle.dumps(entries, protocol=2))
    return {"type": "PathVQADataset", "data_path": str(folder)}


def pmc_vqa(folder: Path, rows: int) -> dict[str, Any]:
    """Write questions of PMC-VQA."""
    pictures, lines = Pictures(folder / "images", ".jpg"), []
    for number in range(rows):
        choices = {f"Choice {letter}": f" {letter}:no" for letter in "ABCD"}
        texts = {"Question": _QUESTIONS[number % 4], "Answer": "ABCD"[number % 4], **choices}
        lines.append({"Figure_path": pictures.add(f"PMC{number}_Fig1.jpg"), **texts})
    write_csv(folder / "train.csv", lines)
    return {"type": "MedicalVQADataset", "layout": "pmc_vqa", "data_path": str(folder)}


def _with_options(write: Writer, share: int = 1, **options: Any) -> Writer:
    """Return a writer of data of which each image has `share` rows if they are read with further options."""
    return lambda folder, rows: {**write(folder, -(-rows // share)), **options}


KINDS: dict[str, Writer] = {
    "VQA, JSON lines": _vqa_table("rows.jsonl", write_json_lines),
    "VQA, JSON": _vqa_table("rows.json", write_json),
    "VQA, CSV": _vqa_table("rows.csv", write_csv),
    "VQA, TSV": _vqa_table("rows.tsv", write_csv, delimiter="\t"),
    "VQA, Parquet": vqa_parquet,
    "text QA": text_qa,
    "multiple choice": multiple_choice,
    "REC": _table("RECDataset", _rec, "img_path"),
    "RES": _table("RESDataset", _res, "img_path", COCO_SIZE),
    "detection, table": _table("DetectionDataset", lambda i: {"label": "nodule", "boxes": [_box(i), _box(i + 1)]}),
    "detection, COCO": coco,
    "detection, COCO, by label": _with_options(coco, 3, per="label"),
    "detection, VOC": voc,
    "mask folders": mask_folders,
    "BiomedParse": biomed_parse,
    "presence": _table("PresenceDataset", lambda i: {"label": "nodule", "present": i % 2}),
    "multi-label": _table("MultiLabelDataset", _several, labels=list(chexpert.LABELS)),
    "counting": _table("CountingDataset", lambda i: {"label": "cells", "count": i % 20}),
    "regression": _table("RegressionDataset", lambda i: {"value": i % 97 / 4}, unit="mm"),
    "class folders": class_folders,
    "FLARE": flare,
    "MIMIC-CXR": _mimic_cxr("MIMICCXRDataset"),
    "MIMIC-CXR, labels": _mimic_cxr("MIMICCXRLabelDataset"),
    "ChestX-ray14": chest_xray14,
    "CheXpert": che_xpert,
    "CheXpert, studies": _with_options(che_xpert, level="study", views="all"),
    "CheXpert, by label": _with_options(che_xpert, len(chexpert.LABELS) - 1, per="label"),
    "IU X-ray": iu_xray,
    "SLAKE": slake,
    "VQA-RAD": vqa_rad,
    "PathVQA": path_vqa,
    "PMC-VQA": pmc_vqa,
}
