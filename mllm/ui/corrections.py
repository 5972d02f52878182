"""Corrections of readers: questions with their right answers, as a table that `VQADataset` trains on."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mllm.errors import ConfigError, DataError
from mllm.files import json_line, replaced_path, write_text

TABLE = "train.jsonl"
PICTURES = "images"


class Corrections:
    """Folder with a table of corrected answers and their pictures.

    A picture is stored as the model read it, after its window, without the header of its file. A second correction of a
    question about the same pictures replaces the first one.

    Args:
        folder: The folder. It is made with the first correction.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._lock = threading.Lock()

    @property
    def table(self) -> Path:
        """Return the table, the `data_path` of a dataset."""
        return self.folder / TABLE

    @property
    def pictures(self) -> Path:
        """Return the folder of the pictures, the `image_folder` of a dataset."""
        return self.folder / PICTURES

    def keep(
        self, images: Sequence[Image.Image], question: str, answer: str, patient: str = "", modality: str = ""
    ) -> int:
        """Write a correction and return the number of corrections in the table.

        Args:
            images: The pictures of the question.
            question: Text.
            answer: The right answer.
            patient: Pseudonym of the patient, by which splits are separated; empty: unknown.
            modality: Text before the question, as in `VQADataset`; empty: none.

        Raises:
            DataError: There is no question, no answer or no picture, or the table is damaged.
            ConfigError: A file cannot be written.
        """
        question, answer = question.strip(), answer.strip()
        if not question:
            raise DataError("a correction needs a question: ask one first")
        if not answer:
            raise DataError("a correction needs the right answer: write it into the field")
        if not images:
            raise DataError("a correction needs a picture: ask the question about one")
        with self._lock:
            rows = self._rows()
            names = [self._write(image) for image in images]
            row: dict[str, Any] = {"image": names[0] if len(names) == 1 else names}
            row |= {"question": question, "answer": answer}
            row |= {"patient": patient.strip()} if patient.strip() else {}
            row |= {"modality": modality.strip()} if modality.strip() else {}
            same = [old for old in rows if (old.get("image"), old.get("question")) == (row["image"], question)]
            rows = [old for old in rows if old not in same] + [row]
            write_text(self.table, "".join(map(json_line, rows)))
        return len(rows)

    def _rows(self) -> list[dict[str, Any]]:
        """Return the rows of the table."""
        if not self.table.exists():
            return []
        rows = []
        try:
            lines = self.table.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.table} cannot be read: {error}") from error
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(
                    f"{self.table}, line {number}: it is no JSON object: correct it or choose another folder"
                )
            rows.append(row)
        return rows

    def _write(self, image: Image.Image) -> str:
        """Write a picture under a name made from its content, unless it exists, and return the name."""
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        content = hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()
        path = self.pictures / f"{content[:24]}.png"
        if not path.exists():
            with replaced_path(path) as temporary:
                temporary.write_bytes(buffer.getvalue())
        return path.name
