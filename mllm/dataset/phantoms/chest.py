"""Writers of miniatures of public chest X-ray sets, with the published names of files and columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mllm.dataset.phantoms.phantom import Phantom, draw
from mllm.dataset.phantoms.writers import save_image
from mllm.files import replaced_file

SIZE = 224
"""Width and height of an image in pixels."""
_ENTRY_COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
    "OriginalImage[Width",
    "Height]",
    "OriginalImagePixelSpacing[x",
    "y]",
    "",
)
"""Columns of `Data_Entry_2017.csv`; each line of the published file ends with a comma."""
_BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", "")
_CHEXPERT_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
"""Columns of `train.csv` before the labels."""


def first_number(folder: Path) -> int:
    """Return the number of the first patient of a miniature, so that the splits of a run share no patient."""
    return 1 + sum(number * byte for number, byte in enumerate(folder.name.encode(), start=1)) * 100


def xray(folder: Path, number: int) -> Phantom:
    """Return a chest X-ray with up to two lesions that depends on the name of the folder and the number."""
    rng = np.random.default_rng((number, *folder.name.encode()))
    return draw("X-ray", rng, SIZE, number % 3)


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file with a header; its folder is made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; its folder is made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as file:
        json.dump(value, file, indent=1)


def write_chest_xray14(folder: Path, rows: int) -> dict[str, Any]:
    """Write `rows` images of as many patients in the layout of ChestX-ray14; return the options that read them."""
    entries, boxes, names = [], [], []
    for number in range(rows):
        patient = first_number(folder) + number
        name, phantom = f"{patient:08}_000.png", xray(folder, number)
        save_image(phantom.image, folder / "images" / name)
        labels = ("No Finding", "Nodule", "Infiltration|Nodule")[len(phantom.boxes)]
        entries.append((name, labels, 0, patient, 58, "M", "PA", SIZE, SIZE, 0.143, 0.143, ""))
        for label, (x1, y1, x2, y2) in zip(("Nodule", "Infiltrate"), phantom.boxes, strict=False):
            boxes.append((name, label, float(x1), float(y1), float(x2 - x1), float(y2 - y1), "", "", ""))
        names.append(name)
    write_rows(folder / "Data_Entry_2017.csv", _ENTRY_COLUMNS, entries)
    write_rows(folder / "BBox_List_2017.csv", _BOX_COLUMNS, boxes)
    for file in ("train_val_list.txt", "test_list.txt"):
        with replaced_file(folder / file) as stream:
            stream.write("\n".join(names if file.startswith("train") else []) + "\n")
    return {"data_path": str(folder), "split": "train_val"}


def _labels(phantom: Phantom, order: Sequence[str], uncertain: bool) -> list[str]:
    """Return the values of the labels of an image: 1.0, 0.0, -1.0 or blank."""
    values: dict[str, str] = {"Lung Lesion": "1.0", "Fracture": "-1.0" if uncertain else "0.0"}
    if not phantom.boxes:
        values = {"No Finding": "1.0"}
    return [values.get(label, "") for label in order]


def write_chexpert(folder: Path, rows: int, labels: Sequence[str]) -> dict[str, Any]:
    """Write `rows` studies with two views in the layout of CheXpert; return the options that read them."""
    root, table = folder / "CheXpert-v1.0-small", []
    for number in range(rows):
        phantom = xray(folder, number)
        study = f"train/patient{first_number(folder) + number:05}/study1"
        for view, name in enumerate(("frontal", "lateral"), start=1):
            file = f"{study}/view{view}_{name}.jpg"
            save_image(phantom.image, root / file)
            values = _labels(phantom, labels, uncertain=number % 2 == 1)
            position = "AP" if name == "frontal" else ""
            table.append((f"{root.name}/{file}", "Female", 58, name.capitalize(), position, *values))
    write_rows(root / "train.csv", (*_CHEXPERT_COLUMNS, *labels), table)
    return {"data_path": str(root), "split": "train"}


def write_mimic_cxr(folder: Path, rows: int, labels: Sequence[str]) -> dict[str, Any]:
    """Write `rows` studies in the layout of MIMIC-CXR-JPG, with reports; return the options that read them."""
    tables: Mapping[str, list[Sequence[Any]]] = {"split": [], "metadata": [], "chexpert": []}
    for number in range(rows):
        phantom = xray(folder, number)
        patient, study = 10_000_000 + first_number(folder) + number, 50_000_000 + first_number(folder) + number
        place = folder / "files" / f"p{str(patient)[:2]}" / f"p{patient}"
        for position in ("PA", "LATERAL"):
            image = "-".join(f"{value:08x}" for value in np.random.default_rng((study, len(position))).bytes(20)[:5])
            save_image(phantom.image, place / f"s{study}" / f"{image}.jpg")
            tables["split"].append((image, study, patient, "train"))
            tables["metadata"].append((image, patient, study, position, 21800506))
        tables["chexpert"].append((patient, study, *_labels(phantom, labels, uncertain=number % 2 == 1)))
        with replaced_file(place / f"s{study}.txt") as file:
            file.write(_report(len(phantom.boxes)))
    columns = {
        "split": ("dicom_id", "study_id", "subject_id", "split"),
        "metadata": ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate"),
        "chexpert": ("subject_id", "study_id", *labels),
    }
    for name, lines in tables.items():
        write_rows(folder / f"mimic-cxr-2.0.0-{name}.csv", columns[name], lines)
    return {"data_path": str(folder), "split": "train"}


def _report(nodules: int) -> str:
    """Return a report in the layout of MIMIC-CXR."""
    finding = ("The lungs are clear.", "There is one nodule.", "There are two nodules.")[nodules]
    impression = "No acute process." if not nodules else "Pulmonary nodules."
    return (
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n\n"
        " INDICATION:  ___ with cough.\n\n"
        f" FINDINGS: \n \n {finding} The heart is of\n normal size.\n \n IMPRESSION: \n \n {impression}\n"
    )


def write_iu_xray(folder: Path, rows: int) -> dict[str, Any]:
    """Write `rows` studies with two images in the layout of R2Gen; return the options that read them."""
    studies = []
    for number in range(rows):
        phantom, name = xray(folder, number), f"CXR{first_number(folder) + number}_IM-0001"
        files = [f"{name}/{view}.png" for view in range(2)]
        for file in files:
            save_image(phantom.image, folder / "images" / file)
        finding = ("The lungs are clear .", "There is one nodule .", "There are two nodules .")[len(phantom.boxes)]
        studies.append({"id": name, "report": finding, "image_path": files, "split": "train"})
    write_json(folder / "annotation.json", {"train": studies, "val": [], "test": []})
    return {"data_path": str(folder), "split": "train"}
