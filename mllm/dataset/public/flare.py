"""FLARE 2025, task 5: 19 datasets of 2D medical images with 58,112 questions of seven tasks."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from mllm.dataset.base import ImageTextDataset
from mllm.dataset.challenge import ChallengeDataset
from mllm.dataset.public.flare_answers import challenge_answer
from mllm.dataset.public.official import field, official_split, official_table, rows_of
from mllm.dataset.tables.listed import ListedRecords
from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.records import ERROR, Records
from mllm.dataset.tables.values import is_empty, text_of
from mllm.errors import ConfigError, DataError, hint
from mllm.parsing import number_and_unit, parse_boxes, parse_instances, parse_json
from mllm.registry import DATASETS
from mllm.structures import IMAGE, Answer, Sample, Turn

SYSTEM = (
    "You are an expert medical AI assistant specialized in analyzing medical images and providing accurate diagnostic "
    "insights."
)
"""System prompt of the published baselines."""
INSTRUCTIONS = {
    "classification": "Choose the correct option. Answer with its letter only.",
    "multi_label_classification": "Choose all correct options. Answer as in the examples of the question.",
    "detection": "Give the box of the object as [x1, y1, x2, y2] in pixels of the image.",
    "instance_detection": "Give the boxes of all objects by identity, as JSON in pixels of the image.",
    "counting": "Count the objects. Answer with a whole number only.",
    "regression": "Estimate the value. Answer with a number only.",
    "report_generation": "Write the report of this examination.",
}
"""Task -> instruction before a question."""
_SPELLINGS = {
    "classification": "classification",
    "disease diagnosis": "classification",
    "disease diagnosis classification": "classification",
    "multi label": "multi_label_classification",
    "multi label classification": "multi_label_classification",
    "detection": "detection",
    "instance detection": "instance_detection",
    "counting": "counting",
    "cell counting": "counting",
    "regression": "regression",
    "report generation": "report_generation",
}
"""Spellings of `TaskType` in the files and in the published baselines, in lower case, with spaces for `-` and `_`."""
# A spelling may lack its spaces.
_JOINED = {name.replace(" ", ""): task for name, task in _SPELLINGS.items()}
DATASETS_BY_CATEGORY = {
    "Retinography": ("retino", "fundus"),
    "Ultrasound": ("BUSI", "BUS-UCLM", "BUSI-det", "BUS-UCLM-det", "iugc"),
    "Xray": ("boneresorption", "dental", "periapical", "IU_XRay", "chestdr"),
    "Clinical": ("neojaundice",),
    "Microscopy": ("chromosome", "neurips22cell", "bone_marrow"),
    "Endoscopy": ("endo",),
    "Dermatology": ("bcn20000",),
    "Mammography": ("CMMD",),
}
"""Folder of a category -> its datasets."""
SPLITS = {
    "training": ("train",),
    "validation-public": ("val",),
    "validation-hidden": ("val_withGT", "val"),
    "testing": ("test_withGT", "test"),
}
"""Folder of a split -> ends of the names of its files, the preferred one first: both have the same rows."""
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
_FLOAT = re.compile(r"\d+\.0+")


def task_of(text: str, answer: str) -> str:
    """Return the task of a row by its `TaskType`, which the files spell in several ways.

    A `TaskType` with several tasks (`Classification, Detection, Regression`) is resolved by the form of the answer.

    Raises:
        DataError: The `TaskType` is unknown.
    """
    tasks = []
    for part in re.split("[,;/]", text):
        name = re.sub(r"[\s_-]", "", part.lower())
        if name not in _JOINED:
            raise DataError(f"unknown TaskType '{part.strip()}'{hint(part, _SPELLINGS)}")
        tasks.append(_JOINED[name])
    if len(tasks) == 1:
        return tasks[0]
    form = "detection" if answer.startswith("[") else "regression" if _NUMBER.fullmatch(answer) else "classification"
    return form if form in tasks else tasks[0]


@DATASETS.register_module()
class FLAREDataset(ImageTextDataset, ChallengeDataset):
    """Questions of FLARE 2025, task 5 (https://huggingface.co/datasets/FLARE-MedFM/FLARE-Task5-MLLM-2D).

    `data_path` is `organized_dataset`, with `training/Retinography/retino/retino_questions_train.json`,
    `training/Retinography/retino/imagesTr/` and so on. Of a file with answers (`_withGT`) and one without, the first is
    read, never both. A split without any answer, such as `testing`, can be evaluated, which writes `predictions.json`
    without figures. A list or an object of boxes is learned as JSON, a list of labels with `; ` between them. Patients
    are unknown; questions about an image stay in one split. An evaluation writes `predictions.json` for the challenge:
    the rows of the question files with the predicted `Answer`.

    Args:
        data_path: The folder `organized_dataset`.
        split: 'training', 'validation-public', 'validation-hidden' or 'testing'.
        sets: Names of datasets, such as `["retino", "BUSI"]`; None: all 19.
        tasks: Names of tasks, such as `["classification", "counting"]`; None: all seven.
        instructions: Write the instruction of the task before a question.
        system: System prompt; None: none.
        options: Options of `ImageTextDataset`.
    """

    has_columns = False
    has_measures = False
    challenge_file = "predictions.json"

    def __init__(
        self,
        data_path: str | Path,
        split: str = "training",
        sets: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        instructions: bool = True,
        system: str | None = SYSTEM,
        **options: Any,
    ) -> None:
        root = Path(data_path).expanduser()
        self.official = official_split(split, tuple(SPLITS)) or "training"
        known = [name for names in DATASETS_BY_CATEGORY.values() for name in names]
        self.sets = _known(sets, known, "dataset")
        self.tasks = _known(tasks, tuple(INSTRUCTIONS), "task")
        self.instructions, self.system = instructions, system
        super().__init__(root, root, **options)

    @override
    def open_records(self, path: Path) -> Records:
        folder = path / self.official
        if not folder.is_dir():
            present = [name for name in SPLITS if (path / name).is_dir()]
            others = f", only {', '.join(present)}: set split to one that it has" if present else ""
            raise DataError(
                f"data_path {path} has no folder {self.official}{others or ': set it to organized_dataset'}"
            )
        rows, places = PackedRows(), PackedRows()
        for category, names in DATASETS_BY_CATEGORY.items():
            for name in names:
                place = folder / category / name
                if name in self.sets and place.is_dir():
                    self._read(place, rows, places)
        if not rows:
            chosen = ", ".join(self.sets)
            raise DataError(f"{folder} has no question of the tasks {', '.join(self.tasks)} in {chosen}")
        self.has_references = self.official == "training" or any(row["answer"] for row in rows)
        self.entries = rows
        """All rows, also those that cannot be used."""
        return ListedRecords(folder, rows, places)

    def _read(self, folder: Path, rows: PackedRows, places: PackedRows) -> None:
        """Append the rows of a dataset and their locations."""
        ends = SPLITS[self.official]
        files = [folder / f"{folder.name}_questions_{end}.json" for end in ends]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise DataError(f"{folder} has no {' or '.join(file.name for file in files)}")
        records = official_table(file, ("TaskType", "ImageName", "Question"))
        for index, row in rows_of(records):
            answer = task = error = ""
            images: list[str] = []
            try:
                if ERROR in row:
                    raise DataError(row[ERROR])
                _check_split(field(row, "Split"), self.official)
                answer = _text_of_answer(row.get("Answer"))
                task = task_of(field(row, "TaskType"), answer)
                answer = _answer(task, row.get("Answer"), answer)
                images = [f"{folder.relative_to(self._root(folder)).as_posix()}/{name}" for name in _images(row)]
            except DataError as reason:
                error = str(reason)
            if task in self.tasks or error:
                entry = {"image": images, "question": row.get("Question"), "answer": answer, "task": task}
                patient = images[0] if images else None
                facts = {"patient": patient, "modality": row.get("Modality"), "row": {} if ERROR in row else row}
                rows.append({**entry, ERROR: error, **facts})
                places.append(records.describe(index))

    @staticmethod
    def _root(folder: Path) -> Path:
        """Return `organized_dataset` of the folder of a dataset."""
        return folder.parents[2]

    @override
    def parse(self, row: dict[str, Any]) -> Sample:
        if self.has_references and not row["answer"]:
            raise DataError("field 'Answer' is empty, although other rows of the split have answers")
        images = [image for name in row["image"] for image in self.read_images(name)]
        question = text_of(row["question"], "Question").replace(IMAGE, "").strip()
        if self.instructions:
            question = f"{INSTRUCTIONS[row['task']]}\n\n{question}"
        user = Turn("user", " ".join([*[IMAGE] * len(images), question]))
        system = [] if self.system is None else [Turn("system", self.system)]
        answer = [Turn("assistant", row["answer"])] if self.has_references else []
        return Sample([*system, user, *answer], images, task=row["task"])

    @override
    def challenge_entry(self, index: int, answer: Answer | None) -> dict[str, Any]:
        """Return the row of the question file with the predicted answer, empty if the row could not be used."""
        entry = self.entries[index]
        text = "" if answer is None else challenge_answer(answer, entry["task"], str(entry["question"]))
        return {**entry["row"], "Answer": text}

    @override
    def summary(self) -> dict[str, Any]:
        """Return the folder, the number of rows, and those of each task."""
        tasks = Counter(entry["task"] for entry in self.entries)
        return {**super().summary(), "rows by task": {task: tasks[task] for task in self.tasks if task in tasks}}

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        from mllm.dataset.phantoms.flare import write_flare

        return write_flare(folder, rows)


def _check_split(value: str, folder: str) -> None:
    """Raise `DataError` if the column `Split` of a row names another split than its folder."""
    name = value.lower()
    others = ("public", "hidden") if folder.startswith("val") else ()
    named = [part for part in ("train", "val", "test") if name.startswith(part)]
    named += [part for part in others if part in name]
    if not all(part in folder for part in named):
        raise DataError(f"field 'Split' is '{value}', but the row is in the folder {folder}")


def _text_of_answer(value: Any) -> str:
    """Return the text of an answer; a list or an object as JSON."""
    if is_empty(value):
        return ""
    return json.dumps(value) if isinstance(value, (list, dict)) else text_of(value, "Answer").strip()


def _no_json(text: str) -> str | None:
    """Return a text; None for a list or an object of JSON."""
    return None if isinstance(parse_json(text), (list, dict)) else text


def _count(text: str) -> int | None:
    """Return the whole number from 0 that a text is, or states; None for another text."""
    number, unit = number_and_unit(text) or (-1.0, "")
    return int(number) if number >= 0 and number.is_integer() else None


_FORMS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "detection": ("box", parse_boxes),
    "instance_detection": ("box", lambda text: parse_boxes(text) if parse_instances(text) is None else True),
    "counting": ("whole number from 0", _count),
    "regression": ("number", number_and_unit),
}
"""Task -> the content of its answers, and a function that returns None for an answer without it. Others are texts."""


def _answer(task: str, value: Any, text: str) -> str:
    """Return an answer in the form of its task.

    Args:
        task: Name of the task.
        value: The answer in the file.
        text: Its text.

    Raises:
        DataError: The answer has another content than those of its task: a number, boxes, or a text.
    """
    if not text:
        return ""
    content, parse = _FORMS.get(task, ("text", _no_json))
    parsed = parse(text)
    if task == "multi_label_classification" and isinstance(value, list):
        return "; ".join(text_of(label, "Answer").strip() for label in value)
    if parsed is None:
        raise DataError(f"the answer '{text}' has no {content}, but its TaskType is {task.replace('_', ' ')}")
    return str(parsed) if task == "counting" and _FLOAT.fullmatch(text) else text


def _images(row: Mapping[str, Any]) -> list[str]:
    """Return the names of the images of a row; raise `DataError` if it has none."""
    value = row.get("ImageName")
    names: list[Any] = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise DataError(f"field 'ImageName' must be the name of an image or a list of names, not {value!r}")
    return names


def _known(names: Sequence[str] | None, known: Sequence[str], kind: str) -> tuple[str, ...]:
    if names is None:
        return tuple(known)
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {kind} '{name}'{hint(name, known)}")
    return tuple(names)
