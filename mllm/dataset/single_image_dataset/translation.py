"""Pairs of sentences in two languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from mllm.dataset.base import SampleDataset
from mllm.dataset.tables.records import Records
from mllm.errors import DataError, hint
from mllm.files import replaced_file
from mllm.registry import DATASETS
from mllm.structures import Sample, Turn

MTNT_COLUMNS = ("id", "src", "dst")
"""What the three columns of MTNT's files hold, which name none (Michel and Neubig 2018, arXiv:1809.00388)."""


@DATASETS.register_module()
class TranslationDataset(SampleDataset):
    """Sentences and their translations, one pair a row: the sentence is the question, the translation the answer.

    `data_path` is a tsv file of MTNT, without a line of names (`id`, `src`, `dst`), or any other table that
    `TextQADataset` reads, with the columns that `source` and `target` name. A column `translation` may hold both, by
    language: `{"en": ..., "fr": ...}`. `instruction` is written before every sentence, on a line of its own.
    """

    has_measures = False
    group_field: ClassVar[str | None] = None

    def __init__(
        self,
        data_path: str | Path,
        source: str = "src",
        target: str = "dst",
        instruction: str | None = None,
        split: str | None = None,
    ) -> None:
        unnamed = MTNT_COLUMNS if str(data_path).endswith(".tsv") and not _is_named(data_path, source) else None
        self.records = Records(data_path, split, unnamed)
        self.source, self.target, self.instruction = source, target, instruction

    def __len__(self) -> int:
        return len(self.records)

    @override
    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The pair of a row; raises `DataError` with the row's place where a side is missing or empty."""
        row, place = self.records[index], self.describe(index)
        sides: dict[str, Any] = row["translation"] if isinstance(row.get("translation"), dict) else row
        texts = []
        for name in (self.source, self.target):
            if name not in sides:
                raise DataError(f"{place}: field '{name}' is missing{hint(name, map(str, sides))}")
            if not isinstance(sides[name], str) or not sides[name].strip():
                raise DataError(f"{place}: field '{name}' is empty")
            texts.append(sides[name].strip())
        question = f"{self.instruction}\n{texts[0]}" if self.instruction else texts[0]
        return Sample(turns=[Turn("user", question), Turn("assistant", texts[1])], source=place)

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """A few plain pairs; the same folder name gives the same."""
        pairs = [(f"What is {one} and {one + 1}?", f"It is {2 * one + 1}.") for one in range(rows)]
        lines = [json.dumps({"src": question, "dst": answer}) for question, answer in pairs]
        with replaced_file(folder / "rows.jsonl") as file:
            file.write("\n".join(lines) + "\n")
        return {"data_path": str(folder / "rows.jsonl")}

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        return self.records.describe(index)

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        return None


def _is_named(path: str | Path, column: str) -> bool:
    """Whether a file's first line names a column."""
    file = Path(path).expanduser()
    if not file.is_file():
        return True  # `Records` says that it is not there
    with file.open(encoding="utf-8", errors="replace") as lines:
        return column in lines.readline().rstrip("\r\n").split("\t")
