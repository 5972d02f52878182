"""Dataset of sentences and their translations."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from mllm.dataset.single_image_dataset.text_rows import TextDataset
from mllm.dataset.tables.records import Records
from mllm.dataset.tables.text_files import open_text, table_suffix
from mllm.dataset.tables.values import text_of
from mllm.errors import DataError, hint
from mllm.files import replaced_file
from mllm.registry import DATASETS
from mllm.structures import Turn

MTNT_COLUMNS = ("id", "src", "dst")
"""Columns of the MTNT files, which have no header line (Michel and Neubig 2018, arXiv:1809.00388)."""


@DATASETS.register_module()
class TranslationDataset(TextDataset):
    """Sentences and their translations, one pair per row: the sentence is the question, the translation the answer.

    `data_path` is a tsv file of MTNT without a header line (columns `id`, `src`, `dst`), or another table that
    `TextQADataset` reads. `source` and `target` are column names, or keys of a column `translation` that holds both
    texts by language: `{"en": ..., "fr": ...}`. `instruction` is written on a separate line before each sentence.
    """

    def __init__(
        self,
        data_path: str | Path,
        source: str = "src",
        target: str = "dst",
        instruction: str | None = None,
        split: str | None = None,
        patient_column: str | None = "patient",
    ) -> None:
        super().__init__(patient_column)
        is_mtnt = table_suffix(Path(data_path)) == ".tsv" and not _is_named(data_path, source)
        columns = MTNT_COLUMNS if is_mtnt else None
        self.records = Records(data_path, split, columns)
        if is_mtnt:
            self._refuse_header()
        self.source, self.target, self.instruction = source, target, instruction

    def _refuse_header(self) -> None:
        """Raise `DataError` if the first row of a file of MTNT is a header: its id is no number, the next one is."""
        try:
            rows = [self.records[index] for index in range(min(2, len(self.records)))]
        except DataError:
            return  # a malformed row is reported, or skipped, when it is read
        ids = [str(row["id"]).strip() for row in rows]
        if len(ids) == 2 and not ids[0].isdecimal() and ids[1].isdecimal():
            names = ", ".join(map(str, rows[0].values()))
            raise DataError(
                f"{self.records.describe(0)}: is a header ({names}), but a file of MTNT has none: set source and "
                "target to the columns of the texts",
                "the table has a header, but source and target are not in it",
            )

    @override
    def turns_of(self, row: Mapping[str, Any]) -> list[Turn]:
        """Return the sentence and its translation."""
        fields: Mapping[str, Any] = row["translation"] if isinstance(row.get("translation"), dict) else row
        texts = []
        for name in (self.source, self.target):
            if name not in fields:
                raise DataError(f"field '{name}' is missing{hint(name, map(str, fields))}")
            texts.append(text_of(fields[name], name).strip())
        question = f"{self.instruction}\n{texts[0]}" if self.instruction else texts[0]
        return [Turn("user", question), Turn("assistant", texts[1])]

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write `rows` short pairs and return the arguments that read them."""
        pairs = [(f"What is {number} and {number + 1}?", f"It is {2 * number + 1}.") for number in range(rows)]
        lines = [json.dumps({"src": question, "dst": answer}) for question, answer in pairs]
        with replaced_file(folder / "rows.jsonl") as file:
            file.write("\n".join(lines) + "\n")
        return {"data_path": str(folder / "rows.jsonl")}


def _is_named(path: str | Path, column: str) -> bool:
    """Return True if the first line of a file contains the name of a column."""
    file = Path(path).expanduser()
    if not file.is_file():
        return True  # `Records` raises an error for an absent file
    try:
        with open_text(file) as lines:
            return column in next(csv.reader([lines.readline()], delimiter="\t"), [])
    except (OSError, EOFError, zlib.error, UnicodeError):
        return True  # `Records` raises an error about the file
