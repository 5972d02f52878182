"""Writers of miniatures of VQA-RAD, SLAKE, PathVQA and PMC-VQA, with the published names of files and fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mllm.dataset.phantoms.chest import first_number, write_json, write_rows, xray
from mllm.dataset.phantoms.phantom import Phantom
from mllm.dataset.phantoms.writers import save_image, write_pickle


def _questions(folder: Path, rows: int) -> Iterator[tuple[int, Phantom, str, str, str]]:
    """Yield a number, an image, a question, its answer and the type of the answer for each row."""
    for number in range(rows):
        phantom = xray(folder, number)
        if number % 2:
            yield number, phantom, "How many nodules are visible?", str(len(phantom.boxes)), "OPEN"
        else:
            yield number, phantom, "Is there a nodule?", "yes" if phantom.boxes else "no", "CLOSED"


def write_vqa_rad(folder: Path, rows: int) -> dict[str, Any]:
    """Write `rows` questions in the layout of VQA-RAD; return the options that read them."""
    entries = []
    for number, phantom, question, answer, kind in _questions(folder, rows):
        name = f"synpic{first_number(folder) + number}.jpg"
        save_image(phantom.image, folder / "VQA_RAD Image Folder" / name)
        entry = {
            "qid": number,
            "phrase_type": "freeform",
            "qid_linked_id": f"03f451ca-de62-4617-9679-e836026a7{number:03}",
            "image_case_url": "https://medpix.nlm.nih.gov/case?id=7b1b1d2e",
            "image_name": name,
            "image_organ": "CHEST",
            "evaluation": "evaluated",
            "question": question,
            "question_rephrase": "NULL",
            "question_relation": "NULL",
            "question_frame": "NULL",
            "question_type": "PRES",
            "answer": int(answer) if answer.isdigit() else answer,
            "answer_type": f"{kind} " if number == 0 else kind,  # the published file has stray blanks
        }
        entries.append(entry)
    write_json(folder / "VQA_RAD Dataset Public.json", entries)
    return {"data_path": str(folder), "split": "train"}


def write_slake(folder: Path, rows: int) -> dict[str, Any]:
    """Write `rows` questions in the layout of SLAKE; return the options that read them."""
    entries = []
    for number, phantom, question, answer, kind in _questions(folder, rows):
        place = f"xmlab{first_number(folder) + number}"
        save_image(phantom.image, folder / "imgs" / place / "source.jpg")
        entry = {
            "img_id": first_number(folder) + number,
            "img_name": f"{place}/source.jpg",
            "question": question,
            "answer": answer,
            "q_lang": "en",
            "location": "Lung",
            "modality": "X-Ray",
            "answer_type": kind,
            "base_type": "vqa",
            "content_type": "Abnormality",
            "triple": ["vhead", "_", "_"],
            "qid": number,
        }
        entries.append(entry)
    write_json(folder / "train.json", entries)
    return {"data_path": str(folder), "split": "train"}


def write_path_vqa(folder: Path, rows: int) -> dict[str, Any]:
    """Write `rows` questions in the layout of PathVQA; return the options that read them."""
    entries = []
    for number, phantom, question, answer, _ in _questions(folder, rows):
        name = f"train_{first_number(folder) + number:04}"
        save_image(phantom.image, folder / "images" / "train" / f"{name}.jpg")
        entries.append({"image": name, "question": question, "answer": answer})
    write_pickle(folder / "qas" / "train" / "train_qa.pkl", entries)
    return {"data_path": str(folder), "split": "train"}


def write_pmc_vqa(folder: Path, rows: int) -> dict[str, Any]:
    """Write `rows` questions with choices in the layout of version 1 of PMC-VQA; return the options that read them."""
    columns = ["Figure_path", "Question", "Answer", *(f"Choice {letter}" for letter in "ABCD"), "Answer_label"]
    lines = []
    for number, phantom, question, answer, kind in _questions(folder, rows):
        name = f"PMC{first_number(folder) + number}_F1.jpg"
        save_image(phantom.image, folder / "images" / name)
        choices = ("no", "yes", "unclear", "not shown") if kind == "CLOSED" else ("0", "1", "2", "3")
        letter = "ABCD"[choices.index(answer)]
        lettered = [f"{key}:{choice}" for key, choice in zip("ABCD", choices, strict=True)]
        lines.append([name, question, answer, *lettered, letter])
    write_rows(folder / "train.csv", columns, lines)
    return {"data_path": str(folder), "split": "train"}


WRITERS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "vqa_rad": write_vqa_rad,
    "slake": write_slake,
    "path_vqa": write_path_vqa,
    "pmc_vqa": write_pmc_vqa,
}
"""Layout of `MedicalVQADataset` -> writer of its miniature."""
