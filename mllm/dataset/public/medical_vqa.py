"""Public sets of questions about medical images: VQA-RAD, SLAKE and PathVQA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from typing_extensions import override

from mllm.dataset.public.official import field, official_file, official_split, official_table, rows_of
from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.dataset.tables.listed import ListedRecords
from mllm.dataset.tables.records import Records
from mllm.dataset.tables.refer import read_plain_pickle
from mllm.errors import DataError
from mllm.registry import DATASETS

AnswerType = Literal["OPEN", "CLOSED"]


class _PublishedVQA(VQADataset):
    """Base of published sets of questions: `data_path` is their folder; all questions of an image are one group."""

    splits: ClassVar[Mapping[str, tuple[str, ...]]]
    """Split -> names of its files."""

    def __init__(
        self, data_path: str | Path, split: str, answer_type: AnswerType | None = None, **options: Any
    ) -> None:
        root = Path(data_path).expanduser()
        self.official = official_split(split, tuple(self.splits)) or ""
        self.answer_type = answer_type
        super().__init__(root, self.images_of(root), **options)

    def images_of(self, root: Path) -> Path:
        """Return the folder of the images."""
        return root

    def selected(self, records: Records) -> ListedRecords:
        """Return the rows of the answer type, as rows of `VQADataset` whose patient is the image."""
        rows, places = [], []
        for index, published in rows_of(records):
            row = self.row_of(published)
            kind = field(row, "answer_type").upper()
            if row and (self.answer_type is None or kind == self.answer_type):
                texts = {name: row[name] for name in ("image", "question", "answer")}
                rows.append({**texts, "patient": row["image"]})
                places.append(records.describe(index))
        return ListedRecords(records.path, rows, places)

    def row_of(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a published row with `image` and `answer_type`; empty if it is not in the selection."""
        return row


@DATASETS.register_module()
class VQARADDataset(_PublishedVQA):
    """VQA-RAD: questions of clinicians about 315 radiology images (Lau et al., Scientific Data 2018).

    `data_path` holds `VQA_RAD Dataset Public.json` and the images in `VQA_RAD Image Folder/`, as at
    https://osf.io/89kps. The published test split has the rows whose `phrase_type` begins with `test`. Images occur in
    both splits, and so do paraphrases of a question: `split='train'` and `'test'` have images in common, which the
    check for a patient in two splits refuses. For a split without common images divide `split='all'` by `PatientSplit`.

    Args:
        data_path: Folder of the dataset.
        split: 'train', 'test' or 'all'.
        answer_type: 'CLOSED' (yes or no, or a choice) or 'OPEN'; None: both.
        by_image: True: an image counts as a patient. False: images are not compared between splits, to train and test
            on the published split.
        options: Options of `VQADataset`.
    """

    splits = dict.fromkeys(("train", "test", "all"), ("VQA_RAD Dataset Public.json",))

    def __init__(
        self,
        data_path: str | Path,
        split: str = "train",
        answer_type: AnswerType | None = None,
        by_image: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(data_path, split, answer_type, **options)
        if not by_image:
            self.patient_column = None

    @override
    def images_of(self, root: Path) -> Path:
        return root / "VQA_RAD Image Folder"

    @override
    def open_records(self, path: Path) -> Records:
        file = official_file(path, self.splits[self.official], "the questions")
        return self.selected(official_table(file, ("image_name", "question", "answer", "phrase_type", "answer_type")))

    @override
    def row_of(self, row: dict[str, Any]) -> dict[str, Any]:
        is_test = field(row, "phrase_type").startswith("test")
        if self.official != "all" and is_test != (self.official == "test"):
            return {}
        return {**row, "image": row["image_name"]}

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        from mllm.dataset.phantoms.medical_vqa import write_vqa_rad

        return write_vqa_rad(folder, rows)


@DATASETS.register_module()
class SLAKEDataset(_PublishedVQA):
    """SLAKE: questions in English and Chinese about radiology images (Liu et al., arXiv:2102.09542).

    `data_path` holds `train.json`, `validate.json` (or `validation.json`), `test.json` and `imgs/xmlab1/source.jpg`.

    Args:
        data_path: Folder of the dataset.
        split: 'train', 'validate' or 'test'.
        answer_type: 'CLOSED' or 'OPEN'; None: both.
        language: 'en' or 'zh'; None: both.
        options: Options of `VQADataset`.
    """

    splits = {"train": ("train.json",), "validate": ("validate.json", "validation.json"), "test": ("test.json",)}

    def __init__(
        self,
        data_path: str | Path,
        split: str = "train",
        answer_type: AnswerType | None = None,
        language: Literal["en", "zh"] | None = "en",
        **options: Any,
    ) -> None:
        self.language = language
        super().__init__(data_path, split, answer_type, **options)

    @override
    def images_of(self, root: Path) -> Path:
        return root / "imgs"

    @override
    def open_records(self, path: Path) -> Records:
        file = official_file(path, self.splits[self.official], f"the questions of split {self.official}")
        return self.selected(official_table(file, ("img_name", "question", "answer", "q_lang", "answer_type")))

    @override
    def row_of(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.language is not None and field(row, "q_lang") != self.language:
            return {}
        return {**row, "image": row["img_name"]}

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        from mllm.dataset.phantoms.medical_vqa import write_slake

        return write_slake(folder, rows)


@DATASETS.register_module()
class PathVQADataset(_PublishedVQA):
    """PathVQA: questions about pathology images (He et al., arXiv:2003.10286).

    `data_path` holds `qas/train/train_qa.pkl` (likewise `val` and `test`) and `images/train/NAME.jpg`.

    Args:
        data_path: Folder of the dataset.
        split: 'train', 'val' or 'test'.
        answer_type: 'CLOSED' (the answer is yes or no) or 'OPEN'; None: both.
        options: Options of `VQADataset`.
    """

    splits = {name: (f"qas/{name}/{name}_qa.pkl",) for name in ("train", "val", "test")}

    def __init__(
        self, data_path: str | Path, split: str = "train", answer_type: AnswerType | None = None, **options: Any
    ) -> None:
        super().__init__(data_path, split, answer_type, **options)

    @override
    def images_of(self, root: Path) -> Path:
        return root / "images" / self.official

    @override
    def open_records(self, path: Path) -> Records:
        file = official_file(path, self.splits[self.official], f"the questions of split {self.official}")
        rows = read_plain_pickle(file)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{file} must hold a list of dicts with image, question and answer")
        places = [f"{file}, entry {number}" for number in range(1, len(rows) + 1)]
        return self.selected(ListedRecords(file, rows, places))

    @override
    def row_of(self, row: dict[str, Any]) -> dict[str, Any]:
        answer = field(row, "answer").lower().rstrip(".")
        image = row.get("image")
        name = image if not isinstance(image, str) or image.endswith(".jpg") else f"{image}.jpg"
        return {**row, "image": name, "answer_type": "CLOSED" if answer in ("yes", "no") else "OPEN"}

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        from mllm.dataset.phantoms.medical_vqa import write_path_vqa

        return write_path_vqa(folder, rows)
