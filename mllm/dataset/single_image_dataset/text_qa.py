"""Conversations without images: questions and answers in the layouts that are in use."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm
from typing_extensions import override

from mllm.dataset.base import SampleDataset
from mllm.dataset.tables.records import Records
from mllm.dataset.tables.text_filters import TextFilters
from mllm.errors import ConfigError, DataError, hint
from mllm.files import replaced_file
from mllm.registry import DATASETS
from mllm.structures import Role, Sample, Turn

logger = logging.getLogger(__name__)

ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model"), "assistant"),
}
"""Who speaks, in the words of ShareGPT, OpenAI and Gemma."""
COLUMNS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("QUESTION", "LONG_ANSWER"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("input", "output"),
)
"""Pairs of columns that mean a question and its answer."""
BESIDE = {"instruction": ("input", "context"), "input": ("context",), "question": ("context",)}
"""What stands behind a question, by the name of its column: Alpaca's input, and the context of Dolly and others."""


@DATASETS.register_module()
class TextQADataset(SampleDataset):
    """Questions and answers in text, one conversation a row; every turn of it is kept.

    A row has `conversations` (ShareGPT: from, value), `messages` (OpenAI: role, content), `instruction` with `output`
    or `response` and perhaps `input` or `context`, or a question and an answer, whose columns `question` and `answer`
    can name; `context` then names one that stands behind the question, a text or a list of them. `data_path` is a
    json, jsonl, csv, tsv or Parquet file, a folder written by `datasets`, or `ORG/NAME` on the Hub. `filters` are
    those of `TextFilters`; what they drop is counted in the log. `patient` is never divided between splits.
    """

    has_measures = False
    group_field: ClassVar[str] = "patient"

    def __init__(
        self,
        data_path: str | Path,
        split: str | None = None,
        question: str | None = None,
        answer: str | None = None,
        context: str | None = None,
        system: str | None = None,
        filters: Mapping[str, Any] | None = None,
    ) -> None:
        if (question is None) != (answer is None):
            raise ConfigError("question and answer name two columns: give both or neither")
        if context is not None and question is None:
            raise ConfigError("context names a column beside those of question and answer: give all three")
        self.records = Records(data_path, split)
        self.named = None if question is None or answer is None else (question, answer)
        self.context = context
        self.system = system
        self.kept = self._filtered(TextFilters.of(filters)) if filters else None

    def _filtered(self, filters: TextFilters) -> Sequence[int]:
        """The rows that the filters leave; an unreadable one is kept, so that it is told when it is used."""
        rows = tqdm(range(len(self.records)), desc="filtering", unit="row", disable=None, leave=False)
        kept = filters.kept(self._turns_of(index) for index in rows)
        logger.info("%s: %s", self.records.path, filters.report)
        if not kept:
            raise DataError(f"{self.records.path}: the filters leave none of its {len(self.records)} rows")
        return kept

    def __len__(self) -> int:
        return len(self.records) if self.kept is None else len(self.kept)

    @override
    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The conversation of a row; raises `DataError` with the row's place where it is none."""
        row = self._row(index)
        turns = self._turns_of(row)
        if isinstance(turns, str):
            raise DataError(f"{self.describe(index)}: {turns}")
        return Sample(turns=turns, group=self.group(index), source=self.describe(index))

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Plain pairs, three times `rows`: texts cost little, and a run's first update, at rate 0, is not its last."""
        pairs = [(f"What is {one} and {one + 1}?", f"It is {2 * one + 1}.") for one in range(3 * rows)]
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in pairs]
        with replaced_file(folder / "rows.jsonl") as file:
            file.write("\n".join(lines) + "\n")
        return {"data_path": str(folder / "rows.jsonl")}

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        return self.records.describe(self._row(index))

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        value = self.records[self._row(index)].get(self.group_field)
        return None if value in (None, "") else str(value)

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return index if self.kept is None else int(self.kept[index])

    def _turns_of(self, index: int) -> list[Turn] | str:
        """The turns of a row of the file, or why it has none."""
        try:
            row = self.records[index]
            turns = self._parse(row)
        except DataError as error:
            return str(error).removeprefix(f"{self.records.describe(index)}: ")
        if self.system and turns[0].role != "system":
            turns.insert(0, Turn("system", self.system))
        return turns

    def _parse(self, row: Mapping[str, Any]) -> list[Turn]:
        """The turns of a row in whichever layout it has."""
        if self.named is None:
            for field, role, text in (("conversations", "from", "value"), ("messages", "role", "content")):
                if field in row:
                    return _conversation(row[field], field, role, text)
            for question, answer in COLUMNS:
                if question in row and answer in row:
                    return _pair(_joined(row, question, BESIDE.get(question, ())), _text(row, answer))
        else:
            beside = [] if self.context is None else [self.context]
            for name in (*self.named, *beside):
                if name not in row:
                    raise DataError(f"field '{name}' is missing{hint(name, map(str, row))}")
            return _pair(_joined(row, self.named[0], beside), _text(row, self.named[1]))
        raise DataError(
            f"its fields ({', '.join(map(str, row))}) are no known layout: conversations, messages, instruction and "
            "output, or question and answer; name the two columns by question=... and answer=..."
        )


def _pair(question: str, answer: str) -> list[Turn]:
    return [Turn("user", question), Turn("assistant", answer)]


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"field '{field}' is {'empty' if value in (None, '') or isinstance(value, str) else 'no text'}")
    return value.strip()


def _joined(row: Mapping[str, Any], field: str, beside: Iterable[str]) -> str:
    """A question and what stands behind it, where a row has that; a list of texts is joined line by line."""
    parts = [_text(row, field)]
    for name in beside:
        value = row.get(name)
        lines = value if isinstance(value, (list, tuple)) else [value or ""]
        if any(not isinstance(line, str) for line in lines):
            raise DataError(f"field '{name}' is no text")
        parts.append("\n".join(lines).strip())
    return "\n\n".join(filter(None, parts))


def _spoken(content: Any) -> Any:
    """The text of OpenAI's list of parts, where all of them are text; anything else as it is."""
    if isinstance(content, (list, tuple)) and content:
        parts = [part for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        texts = [text for part in parts if isinstance(text := part.get("text"), str)]
        if len(texts) == len(content):
            return "\n".join(texts)
    return content


def _conversation(turns: Any, field: str, role_key: str, text_key: str) -> list[Turn]:
    """Turns out of a list of objects with a role and a text; neighbors of one role are joined."""
    if not isinstance(turns, (list, tuple)) or not turns:
        raise DataError(f"field '{field}' must be a list of turns")
    found: list[Turn] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or role_key not in turn or text_key not in turn:
            raise DataError(f"turn {number} of '{field}' needs '{role_key}' and '{text_key}'")
        role = ROLES.get(str(turn[role_key]))
        if role is None:
            raise DataError(f"turn {number} of '{field}': unknown speaker '{turn[role_key]}'{hint('', ROLES)}")
        text = _text({text_key: _spoken(turn[text_key])}, text_key)
        if role == "system" and found and found[-1].role != "system":
            raise DataError(f"turn {number} of '{field}': a system text stands before all other turns")
        if found and found[-1].role == role:
            # Templates want alternating turns; two messages in a row are one turn.
            found[-1] = Turn(role, f"{found[-1].text}\n{text}")
        else:
            found.append(Turn(role, text))
    if all(turn.role != "assistant" for turn in found):
        raise DataError(f"'{field}' has no answer (a turn of gpt or assistant)")
    first = next(turn.role for turn in found if turn.role != "system")
    if first != "user":
        raise DataError(f"'{field}' begins with an answer; a question comes first")
    return found
