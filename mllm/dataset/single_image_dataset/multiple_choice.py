"""Dataset of multiple-choice questions in text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from mllm.dataset.single_image_dataset.text_rows import TextDataset
from mllm.dataset.tables.records import Records
from mllm.dataset.tables.values import is_empty, text_of
from mllm.errors import DataError
from mllm.files import replaced_file
from mllm.parsing import LETTERS, options_in, parse_option
from mllm.registry import DATASETS
from mllm.structures import Turn

OPTIONS = ("options", "choices")
"""Columns with the options, in the order of preference."""
ANSWERS = ("answer_idx", "answer")
"""Columns with the answer, in the order of preference."""
INSTRUCTION = "Answer with the letter of the correct option only."


@DATASETS.register_module()
class MultipleChoiceDataset(TextDataset):
    """Multiple-choice questions in text, one per row. The answer is the letter of an option.

    A row has `question`, `options` or `choices` (a list, or an object letter -> text), and `answer_idx` or `answer`: a
    letter, the number of the option from 0, or its text; if a row has both, they must agree. These are the columns of
    MedQA and MMLU. A question that lists its options (`Options: A: rest B: ice`) needs no column for them. Rows with
    the same value in the column `patient_column` stay in one split.

    Args:
        data_path: A json, jsonl, csv, tsv or Parquet file, a folder written by `datasets`, or `ORG/NAME` on the Hub.
        split: Split of a table of the library `datasets`.
        instruction: Text on a line of its own after the options; empty: none.
        system: System text of all rows.
        patient_column: Column with the patient of a row.
    """

    def __init__(
        self,
        data_path: str | Path,
        split: str | None = None,
        instruction: str = INSTRUCTION,
        system: str | None = None,
        patient_column: str | None = "patient",
    ) -> None:
        super().__init__(patient_column)
        self.records = Records(data_path, split)
        self.instruction, self.system = instruction, system

    @override
    def turns_of(self, row: Mapping[str, Any]) -> list[Turn]:
        question = _text(row, "question")
        column = next((name for name in OPTIONS if not is_empty(row.get(name))), None)
        options = options_in(question) if column is None else _options(row[column], column)
        if len(options) < 2:
            raise DataError.without_values(
                "the row has fewer than two options: add a column 'options' with a list, or list them in the question"
            )
        listed = "" if column is None else "Options: " + ", ".join(f"{key}: {text}" for key, text in options.items())
        parts = [question, listed, self.instruction]
        system = [Turn("system", self.system)] if self.system else []
        user = Turn("user", "\n".join(part for part in parts if part))
        return [*system, user, Turn("assistant", _letter(row, options))]

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write `rows` questions with three options and return the arguments that read them."""
        lines = []
        for number in range(rows):
            rng = np.random.default_rng((number, *folder.name.encode()))
            values = [int(value) for value in rng.permutation(90)[:3] + 10]
            row = {"question": "Which number is the largest?", "options": [str(value) for value in values]}
            lines.append(json.dumps({**row, "answer_idx": LETTERS[values.index(max(values))]}))
        with replaced_file(folder / "rows.jsonl") as file:
            file.write("\n".join(lines) + "\n")
        return {"data_path": str(folder / "rows.jsonl")}


def _text(row: Mapping[str, Any], field: str) -> str:
    if is_empty(row.get(field)):
        raise DataError.without_values(f"field '{field}' is missing or empty")
    return text_of(row[field], field).strip()


def _options(value: Any, column: str) -> dict[str, str]:
    """Return letter -> text of the options of a row; JSON in a column of a csv file is read, too.

    Raises:
        DataError: The value is no list or object, or has letters other than A, B, ... in this order.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list) and len(value) <= len(LETTERS):
        value = dict(zip(LETTERS, value, strict=False))
    if not isinstance(value, Mapping) or list(value) != list(LETTERS[: len(value)]):
        raise DataError.without_values(
            f"field '{column}' must be a list, or an object with the letters A, B, ... as keys"
        )
    return {letter: text_of(text, column).strip() for letter, text in value.items()}


def _letter(row: Mapping[str, Any], options: Mapping[str, str]) -> str:
    """Return the letter of the answer of a row.

    Raises:
        DataError: The row has no answer, none that is one of its options, or two that differ.
    """
    columns = [name for name in ANSWERS if not is_empty(row.get(name))]
    if not columns:
        raise DataError.without_values(f"the row has no {' or '.join(ANSWERS)}")
    letter, *others = (_option(row[name], name, options) for name in columns)
    if letter is None:
        raise DataError.without_values(
            f"field '{columns[0]}' is not one of the options: a letter, a number from 0, or a text"
        )
    if any(other not in (None, letter) for other in others):
        raise DataError.without_values(f"fields '{columns[0]}' and '{columns[1]}' name different options: correct one")
    return letter


def _option(value: Any, column: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of an answer: a letter, the number of an option, or its text; None for another one."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return LETTERS[value] if 0 <= value < len(options) else None
    return parse_option(text_of(value, column), options)
