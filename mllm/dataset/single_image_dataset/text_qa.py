"""Dataset of conversations without images, in the common file formats."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from mllm.dataset.progress import with_progress
from mllm.dataset.single_image_dataset.text_rows import TextDataset
from mllm.dataset.tables.records import Records
from mllm.dataset.tables.text_filters import TextFilters
from mllm.dataset.tables.values import is_empty, text_of
from mllm.errors import ConfigError, DataError, hint
from mllm.files import replaced_file
from mllm.registry import DATASETS
from mllm.structures import Role, Turn

logger = logging.getLogger(__name__)

ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model"), "assistant"),
}
"""Names of roles in the formats of ShareGPT, OpenAI and Gemma."""
COLUMNS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("QUESTION", "LONG_ANSWER"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("input", "output"),
)
"""Pairs of columns that hold a question and its answer."""
EXTRA_COLUMNS = {"instruction": ("input", "context"), "input": ("context",), "question": ("context",)}
"""Columns that are appended to a question, by the name of its column: Alpaca's input, and the context of Dolly."""


@DATASETS.register_module()
class TextQADataset(TextDataset):
    """Questions and answers in text, one conversation per row; all turns are used.

    A row has `conversations` (ShareGPT: from, value), `messages` (OpenAI: role, content), `instruction` with `output`
    or `response` and optionally `input` or `context`, or a question and an answer. The arguments `question` and
    `answer` name the columns of the last format; `context` names a column with a text or a list of texts that is
    appended to the question. `data_path` is a json, jsonl, csv, tsv or Parquet file, a folder written by `datasets`, or
    `ORG/NAME` on the Hub. `filters` are the options of `TextFilters`; the log has the number of removed rows. Rows
    with the same value in the column `patient_column` stay in one split.
    """

    def __init__(
        self,
        data_path: str | Path,
        split: str | None = None,
        question: str | None = None,
        answer: str | None = None,
        context: str | None = None,
        system: str | None = None,
        filters: Mapping[str, Any] | None = None,
        patient_column: str | None = "patient",
    ) -> None:
        super().__init__(patient_column)
        if (question is None) != (answer is None):
            raise ConfigError("question and answer name two columns: set both or neither")
        if context is not None and question is None:
            raise ConfigError("context requires question and answer: set all three")
        self.records = Records(data_path, split)
        self.columns = None if question is None or answer is None else (question, answer)
        self.context = context
        self.system = system
        self.indices = self._filtered(TextFilters.of(filters)) if filters else None

    def _filtered(self, filters: TextFilters) -> Sequence[int]:
        """Return the indices of the rows that pass the filters; an unreadable row passes and raises when it is used."""
        rows = with_progress(range(len(self.records)), "filtering")
        indices = filters.select(self._turns_or_error(index) for index in rows)
        logger.info("%s: %s", self.records.path, filters.report)
        if not indices:
            raise DataError(f"{self.records.path}: the filters remove all of its {len(self.records)} rows")
        return indices

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write `3 * rows` short pairs, enough for several updates, and return the arguments that read them."""
        pairs = [(f"What is {number} and {number + 1}?", f"It is {2 * number + 1}.") for number in range(3 * rows)]
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in pairs]
        with replaced_file(folder / "rows.jsonl") as file:
            file.write("\n".join(lines) + "\n")
        return {"data_path": str(folder / "rows.jsonl")}

    def _turns_or_error(self, index: int) -> list[Turn] | str:
        """Return the turns of a row of the file, or the error message of an unusable row."""
        try:
            return self.turns_of(self.records[index])
        except DataError as error:
            return str(error)

    @override
    def turns_of(self, row: Mapping[str, Any]) -> list[Turn]:
        """Return the turns of a row, with the system text of the dataset if it has none."""
        turns = self._parse(row)
        if self.system and turns[0].role != "system":
            turns.insert(0, Turn("system", self.system))
        return turns

    def _parse(self, row: Mapping[str, Any]) -> list[Turn]:
        """Return the turns of a row in any of the formats."""
        if self.columns is None:
            for field, role, text in (("conversations", "from", "value"), ("messages", "role", "content")):
                if field in row:
                    return _conversation(row[field], field, role, text)
            for question, answer in COLUMNS:
                if question in row and answer in row:
                    return _pair(_joined(row, question, EXTRA_COLUMNS.get(question, ())), _text(row, answer))
        else:
            extra = [] if self.context is None else [self.context]
            for name in (*self.columns, *extra):
                if name not in row:
                    raise DataError(f"field '{name}' is missing{hint(name, map(str, row))}")
            return _pair(_joined(row, self.columns[0], extra), _text(row, self.columns[1]))
        raise DataError(
            f"its fields ({', '.join(map(str, row))}) are not a known format (conversations, messages, "
            "instruction and output, question and answer): name the two columns with question=... and answer=..."
        )


def _pair(question: str, answer: str) -> list[Turn]:
    return [Turn("user", question), Turn("assistant", answer)]


def _text(row: Mapping[str, Any], field: str) -> str:
    return text_of(row[field], field).strip()


def _joined(row: Mapping[str, Any], field: str, extra: Iterable[str]) -> str:
    """Return a question followed by the extra columns of the row; the texts of a list become lines."""
    parts = [_text(row, field)]
    for name in extra:
        value = row.get(name)
        lines = value if isinstance(value, (list, tuple)) else [value]
        parts.append("\n".join("" if is_empty(line) else text_of(line, name) for line in lines).strip())
    return "\n\n".join(filter(None, parts))


def _content_text(content: Any) -> Any:
    """Return the joined texts of a list of OpenAI content parts if all parts are texts; other values unchanged."""
    if isinstance(content, (list, tuple)) and content:
        parts = [part for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        texts = [text for part in parts if isinstance(text := part.get("text"), str)]
        if len(texts) == len(content):
            return "\n".join(texts)
    return content


def _conversation(turns: Any, field: str, role_key: str, text_key: str) -> list[Turn]:
    """Return the turns of a list of objects with a role and a text; adjacent turns of one role are joined."""
    if not isinstance(turns, (list, tuple)) or not turns:
        raise DataError(f"field '{field}' must be a list of turns")
    result: list[Turn] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or role_key not in turn or text_key not in turn:
            raise DataError(f"turn {number} of '{field}' needs '{role_key}' and '{text_key}'")
        role = ROLES.get(str(turn[role_key]))
        if role is None:
            raise DataError(f"turn {number} of '{field}': unknown role '{turn[role_key]}'{hint('', ROLES)}")
        text = _text({text_key: _content_text(turn[text_key])}, text_key)
        if role == "system" and result and result[-1].role != "system":
            raise DataError(f"turn {number} of '{field}': a system message must precede all other turns")
        if result and result[-1].role == role:
            # Chat templates require alternating roles.
            result[-1] = Turn(role, f"{result[-1].text}\n{text}")
        else:
            result.append(Turn(role, text))
    if all(turn.role != "assistant" for turn in result):
        raise DataError(f"'{field}' has no answer (a turn of gpt or assistant)")
    first = next(turn.role for turn in result if turn.role != "system")
    if first != "user":
        raise DataError(f"'{field}' begins with an answer; it must begin with a question")
    return result
