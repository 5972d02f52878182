"""Facts of the rows of a config for `mllm data`: computed in worker processes, and stored for the next call."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mllm.dataset.base import SampleDataset
from mllm.dataset.contents import ContentDigest, content_of
from mllm.dataset.image_files import UndecodedImage
from mllm.dataset.readers import notices
from mllm.dataset.rows import Row
from mllm.errors import DataError, UserError, errors_of_row
from mllm.private_messages import in_row, is_private, sentence_of, worker_setup
from mllm.protocols import SampleEncoder
from mllm.report.html_page import shortened
from mllm.structures import BOX, IMAGE, POINT, Sample, Turn

VERSION = 5
"""Version of the facts of a row; facts of another version are computed again."""
MAX_CHARACTERS = 300
"""Maximum number of characters of a question or an answer in the facts."""
_MARKS = re.compile(f"{BOX}|{POINT}")

SourceRow = tuple[SampleDataset, int]
"""Source dataset of a row, and its index in it."""


@dataclass(frozen=True)
class ImageFacts:
    """Facts of a decoded image."""

    width: int
    height: int
    digest: str
    """Digest of size and pixels."""
    mean: float
    """Mean of the pixels, 0 (black) to 255 (white)."""
    std: float
    """Standard deviation of the pixels."""


@dataclass(frozen=True)
class RowFacts:
    """Facts of a row of a split."""

    split: str
    number: int
    """Number of the row in its split, from 0."""
    key: str
    """Digest of the texts, and of the sizes and modification times of the files. Empty: unknown."""
    location: str
    """Location for messages: `FILE, line N`. In a private run: split and number."""
    error: str = ""
    """Reason for which the row cannot be used. Empty: it can be used."""
    patient: str | None = None
    modality: str | None = None
    question: str = ""
    answer: str = ""
    images: tuple[ImageFacts, ...] = ()
    files: tuple[str, ...] = ()
    """Files of the images."""
    boxes: int = 0
    masks: int = 0
    points: int = 0
    length: int | None = None
    """Number of tokens of the sample; None: there is no checkpoint, or the model reads images only."""
    truncated: bool = False
    """True if `max_length` cuts the end of the answer."""
    warnings: tuple[str, ...] = ()
    """Kinds of the warnings that the readers of its files gave, sorted."""


@dataclass
class Store:
    """Facts of earlier calls, in a file with one row per line.

    Args:
        path: The file. Rows are appended, so that a killed call loses the last row at most.
        settings: Digest of all settings on which the facts depend. A file with other settings is replaced.
    """

    path: Path
    settings: str
    rows: dict[tuple[str, int], RowFacts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        if lines and _parsed(lines[0]) == {"settings": self.settings}:
            for line in lines[1:]:
                if (row := _parsed(line)) is not None:
                    facts = _row_of(row)
                    self.rows[facts.split, facts.number] = facts
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"settings": self.settings}) + "\n", encoding="utf-8")

    def open(self) -> IO[str]:
        """Open the file for appending rows."""
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            is_cut = file.read() != b"\n"
        lines = self.path.open("a", encoding="utf-8")
        if is_cut:
            lines.write("\n")  # a killed call left an incomplete line
        return lines


def _parsed(line: str) -> Any:
    """Return the value of a line of the store; None for an incomplete line, which a killed call left."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _row_of(row: Mapping[str, Any]) -> RowFacts:
    images = tuple(ImageFacts(**image) for image in row["images"])
    return RowFacts(**{**row, "images": images, "files": tuple(row["files"]), "warnings": tuple(row["warnings"])})


class _Rows(Dataset[RowFacts]):
    """Facts of the rows of all splits. Facts of unchanged rows come from the store."""

    def __init__(
        self, splits: Mapping[str, Sequence[SourceRow]], encoder: SampleEncoder | None, store: Store | None
    ) -> None:
        self.rows = [(name, number) for name, rows in splits.items() for number in range(len(rows))]
        self.splits, self.encoder, self.stored = splits, encoder, {} if store is None else store.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> RowFacts:
        split, number = self.rows[position]
        source, index = self.splits[split][number]
        with in_row(split, number):
            location = Row.current(source, index).name
            try:
                with errors_of_row(location):
                    sample = source.inspect(index)
                    key = row_key(sample)
            except UserError as error:
                return RowFacts(split, number, "", location, error=sentence_of(error))
            stored = self.stored.get((split, number))
            if stored is not None and stored.key == key and stored.location == location:
                return stored
            files = () if is_private() else tuple(dict.fromkeys(map(str, _files(sample))))
            return _facts(RowFacts(split, number, key, location, files=files), source, index, self.encoder)


def row_key(sample: Sample) -> str:
    """Return a digest of a sample that `inspect` returned: its contents, and the modification times of its files."""
    content = ContentDigest()
    content.add(content_of(sample))
    times = repr([(str(file), file.stat().st_mtime_ns) for file in _files(sample)])
    return hashlib.blake2b((content.hexdigest() + times).encode(), digest_size=16).hexdigest()


def _files(sample: Sample) -> list[Path]:
    """Return the files of the images of a sample that `inspect` returned."""
    return [file for image in sample.images if isinstance(image, UndecodedImage) for file in image.files]


def _facts(row: RowFacts, source: SampleDataset, index: int, encoder: SampleEncoder | None) -> RowFacts:
    """Decode the images of a row, encode its sample without random transforms, and return its facts."""
    values = asdict(row)
    try:
        with errors_of_row(row.location):
            with notices.collected() as kinds:
                sample = source.plain(index)
            values["warnings"] = tuple(sorted(kinds))
            if not is_private():
                values |= {
                    "modality": sample.modality,
                    "question": _text(sample, "user"),
                    "answer": _text(sample, "assistant"),
                }
            values |= {
                "patient": sample.group,
                "images": tuple(image_facts(image) for image in sample.images),
                "boxes": sum(mark.box is not None and mark.mask is None for mark in sample.marks),
                "masks": sum(mark.mask is not None for mark in sample.marks),
                "points": sum(mark.point is not None for mark in sample.marks),
            }
            if encoder is not None:
                encoded = encoder.encode(sample)
                values |= {"length": sum(encoded.lengths), "truncated": encoded.truncated}
    except UserError as error:
        values["error"] = sentence_of(error)
    return RowFacts(**values)


def _text(sample: Sample, role: str) -> str:
    """Return the last text of a role, shortened, with the numbers of its boxes and points: `<3 boxes>`."""
    turn = next((turn for turn in reversed(sample.turns) if turn.role == role), Turn("user", ""))
    sizes = iter([len(group) for group in turn.marks])
    text = _MARKS.sub(lambda match: _counted(match[0], next(sizes)), turn.text) if turn.marks else turn.text
    return shortened(text.replace(IMAGE, "").strip(), MAX_CHARACTERS)


def _counted(placeholder: str, count: int) -> str:
    """Return the placeholder of a number of boxes or points, such as `<1 box>`."""
    one, several = ("box", "boxes") if placeholder == BOX else ("point", "points")
    return f"<{count} {one if count == 1 else several}>"


def image_facts(image: Image.Image) -> ImageFacts:
    """Return the facts of an image."""
    pixels = np.asarray(image.convert("RGB"))
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.tobytes())
    return ImageFacts(image.width, image.height, digest.hexdigest(), float(pixels.mean()), float(pixels.std()))


def all_facts(
    splits: Mapping[str, Sequence[SourceRow]], encoder: SampleEncoder | None, store: Store | None, workers: int
) -> Iterator[RowFacts]:
    """Yield the facts of all rows in their order, and add new facts to the store.

    Args:
        splits: Rows of each split.
        encoder: Encoder of the model, for the lengths; None: lengths stay unknown.
        store: Facts of earlier calls; None: facts are not stored.
        workers: Number of worker processes; 0: the rows are read in this process.

    Raises:
        DataError: A worker process ended unexpectedly.
    """
    rows = _Rows(splits, encoder, store)
    loader = DataLoader(
        rows, batch_size=None, num_workers=workers, collate_fn=_unchanged, worker_init_fn=worker_setup()
    )
    with nullcontext() if store is None else store.open() as file:
        try:
            for facts in loader:
                if file is not None and store is not None and store.rows.get((facts.split, facts.number)) != facts:
                    file.write(json.dumps(asdict(facts)) + "\n")
                    file.flush()
                yield facts
        except RuntimeError as error:
            raise DataError.without_values(
                "a worker process ended: start the command again, which continues; with --workers 0 the error names "
                "the row"
            ) from error


def _unchanged(facts: Any) -> Any:
    return facts
