"""Layouts of published sets of questions about medical images: VQA-RAD, SLAKE, PathVQA and PMC-VQA."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from typing_extensions import override

from mllm.dataset.public.official import field, official_file, official_table
from mllm.dataset.tables.listed import ListedRecords
from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.records import ERROR, Records
from mllm.dataset.tables.refer import read_plain_pickle
from mllm.dataset.tables.values import is_empty
from mllm.errors import DataError
from mllm.parsing import whole_option

LayoutName = Literal["vqa_rad", "slake", "path_vqa", "pmc_vqa"]


class Layout(ABC):
    """Files, splits and columns of a published set.

    Args:
        split: A key of `splits`.
        language: 'en' or 'zh'; None: both. Only SLAKE has several languages.
        choices: True: the question has the choices, and the answer is a letter. Only PMC-VQA has choices.
    """

    splits: ClassVar[Mapping[str, tuple[str, ...]]]
    """Split -> names of its table."""
    columns: ClassVar[tuple[str, ...]]
    """Columns that a table needs."""

    def __init__(self, split: str, language: str | None = "en", choices: bool = True) -> None:
        self.split, self.language, self.choices = split, language, choices

    def table(self, root: Path) -> Path:
        """Return the table of the split.

        Raises:
            DataError: It does not exist.
        """
        return official_file(root, self.splits[self.split], f"the questions of split {self.split}")

    def read(self, table: Path) -> Records:
        """Return the rows of the table."""
        return official_table(table, self.columns)

    @abstractmethod
    def images(self, root: Path) -> Path:
        """Return the folder of the images."""

    @abstractmethod
    def row(self, published: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return `image`, `question`, `answer` and `answer_type` of a row; None if it is not in the selection.

        Raises:
            DataError: The row cannot be used.
        """


class VQARAD(Layout):
    """VQA-RAD: one file for both splits, which have images in common."""

    splits = dict.fromkeys(("train", "test", "all"), ("VQA_RAD Dataset Public.json",))
    columns = ("image_name", "question", "answer", "phrase_type", "answer_type")

    @override
    def images(self, root: Path) -> Path:
        return root / "VQA_RAD Image Folder"

    @override
    def row(self, published: Mapping[str, Any]) -> dict[str, Any] | None:
        is_test = field(published, "phrase_type").startswith("test")
        if self.split != "all" and is_test != (self.split == "test"):
            return None
        return {**published, "image": published.get("image_name")}


class SLAKE(Layout):
    """SLAKE: one file for each split, with questions in English and Chinese."""

    splits = {"train": ("train.json",), "validate": ("validate.json", "validation.json"), "test": ("test.json",)}
    columns = ("img_name", "question", "answer", "q_lang", "answer_type")

    @override
    def images(self, root: Path) -> Path:
        return root / "imgs"

    @override
    def row(self, published: Mapping[str, Any]) -> dict[str, Any] | None:
        if self.language is not None and field(published, "q_lang") != self.language:
            return None
        return {**published, "image": published.get("img_name")}


class PathVQA(Layout):
    """PathVQA: a pickle and a folder of images for each split; a question is closed if its answer is yes or no."""

    splits = {name: (f"qas/{name}/{name}_qa.pkl",) for name in ("train", "val", "test")}
    columns = ("image", "question", "answer")

    @override
    def read(self, table: Path) -> Records:
        rows = read_plain_pickle(table)
        if not isinstance(rows, list) or not any(isinstance(row, dict) for row in rows):
            raise DataError(f"{table} must hold a list of dicts with image, question and answer")
        places = PackedRows(f"{table}, entry {number}" for number in range(1, len(rows) + 1))
        used = (
            row if isinstance(row, dict) else {ERROR: f"{place}: must be a dict, not a {type(row).__name__}"}
            for row, place in zip(rows, places, strict=True)
        )
        return ListedRecords(table, PackedRows(used), places)

    @override
    def images(self, root: Path) -> Path:
        return root / "images" / self.split

    @override
    def row(self, published: Mapping[str, Any]) -> dict[str, Any] | None:
        answer = field(published, "answer").lower().rstrip(".")
        image = published.get("image")
        name = image if not isinstance(image, str) or image.endswith(".jpg") else f"{image}.jpg"
        return {**published, "image": name, "answer_type": "CLOSED" if answer in ("yes", "no") else "OPEN"}


class PMCVQA(Layout):
    """PMC-VQA: a table for each split, whose questions have four choices.

    In version 1 (`train.csv`) `Answer` is a text and `Answer_label` its letter; in version 2 (`train_2.csv`) `Answer`
    is the letter. A choice begins with its letter: `B:Focal uptake pattern`.
    """

    splits = {name: (f"{name}.csv",) for name in ("train", "test", "test_clean", "train_2", "test_2")}
    columns = ("Figure_path", "Question", "Choice A", "Choice B", "Choice C", "Choice D", "Answer")

    @override
    def images(self, root: Path) -> Path:
        names = ("figures", "images_2", "images") if self.split.endswith("_2") else ("images",)
        return next((root / name for name in names if (root / name).is_dir()), root / names[-1])

    @override
    def row(self, published: Mapping[str, Any]) -> dict[str, Any] | None:
        letter = field(published, "Answer_label") or field(published, "Answer")
        if letter not in ("A", "B", "C", "D"):
            column = "Answer_label" if "Answer_label" in published else "Answer"
            raise DataError(f"field '{column}' must be A, B, C or D, not {letter!r}")
        texts = {name: self._choice(published, name) for name in "ABCD"}
        if whole_option(field(published, "Answer"), texts) not in (None, letter):
            raise DataError("fields 'Answer_label' and 'Answer' name different choices: correct one")
        question, answer = published["Question"], texts[letter]
        if self.choices and not is_empty(question):
            lines = [f"{name}: {text}" for name, text in texts.items() if text]
            question, answer = "\n".join([str(question).strip(), *lines]), letter
        elif not answer:
            raise DataError(f"field 'Choice {letter}', which is the answer, is empty")
        kind = "CLOSED" if self.choices else "OPEN"
        return {"image": published["Figure_path"], "question": question, "answer": answer, "answer_type": kind}

    @staticmethod
    def _choice(published: Mapping[str, Any], letter: str) -> str:
        """Return the text of a choice without its letter."""
        text = field(published, f"Choice {letter}")
        return text.removeprefix(f"{letter}:").strip()


LAYOUTS: dict[LayoutName, type[Layout]] = {"vqa_rad": VQARAD, "slake": SLAKE, "path_vqa": PathVQA, "pmc_vqa": PMCVQA}
