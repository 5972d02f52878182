"""Findings about the data of a config: counts, duplicates, suspicious images and rare spellings of answers."""

from __future__ import annotations

import difflib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mllm.dataset.folder_files import is_hidden
from mllm.dataset.readers.header_fields import BURNED_IN
from mllm.dataset.readers.notices import CONSTANT
from mllm.report.data.facts import RowFacts

MIN_STD = 2.0
"""Standard deviation of pixel values (0 to 255) below which an image is reported."""
MIN_SIDE = 32
"""Shorter side in pixels below which an image is reported."""
MAX_ASPECT_RATIO = 6.0
"""Ratio of the longer to the shorter side above which an image is reported."""
MAX_ANSWERS = 500
"""Number of different answers above which answers count as free text, and spellings are not compared."""
MAX_LISTED = 25
"""Maximum number of rows of a list on the page."""
MAX_FREQUENT = 12
"""Maximum number of answers on the page, the most frequent ones."""


@dataclass(frozen=True)
class Distribution:
    """Number of values, their range, median and 95th percentile."""

    count: int
    smallest: float
    median: float
    p95: float
    """95th percentile."""
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution | None:
        """Return the distribution of values; None if there are no values."""
        if not values:
            return None
        low, median, p95, high = np.percentile(values, (0, 50, 95, 100))
        return cls(len(values), float(low), float(median), float(p95), float(high))


@dataclass(frozen=True)
class SplitFindings:
    """Counts of one split."""

    name: str
    rows: int
    unusable: int
    patients: int
    without_patient: int
    images: int
    different_images: int
    """Number of images with different pixels."""
    boxes: int
    masks: int
    modalities: list[tuple[str, int]]
    """Modalities with their numbers of rows, most frequent first."""
    answers: list[tuple[str, int]]
    """Most frequent answers with their numbers of rows."""
    different_answers: int
    sizes: list[tuple[str, int]]
    """Most frequent sizes of images, `width x height`, with their numbers of images."""
    different_sizes: int
    lengths: Distribution | None
    """Distribution of the numbers of tokens of the samples; None: unknown."""
    length_values: list[int]
    """Number of tokens of each sample."""
    truncated: int
    sources: list[str]
    """Summary of each source dataset."""


@dataclass(frozen=True)
class Finding:
    """Rows that a user should look at."""

    title: str
    advice: str
    rows: list[str]
    """Lines of the list; the first `MAX_LISTED`."""
    count: int
    """Number of all rows."""
    is_error: bool = False
    """True if training would stop or a metric would be wrong."""


def split_findings(name: str, rows: Sequence[RowFacts], sources: Sequence[str] = ()) -> SplitFindings:
    """Return the counts of a split; `sources` are the summaries of its source datasets."""
    usable = [row for row in rows if not row.error]
    images = [image for row in usable for image in row.images]
    answers = Counter(row.answer for row in usable if row.answer)
    sizes = Counter(f"{image.width} x {image.height}" for image in images)
    lengths = [row.length for row in usable if row.length is not None]
    return SplitFindings(
        name=name,
        rows=len(rows),
        unusable=len(rows) - len(usable),
        patients=len({row.patient for row in usable if row.patient is not None}),
        without_patient=sum(row.patient is None for row in usable),
        images=len(images),
        different_images=len({image.digest for image in images}),
        boxes=sum(row.boxes for row in usable),
        masks=sum(row.masks for row in usable),
        modalities=_modalities(usable),
        answers=answers.most_common(MAX_FREQUENT),
        different_answers=len(answers),
        sizes=sizes.most_common(10),
        different_sizes=len(sizes),
        lengths=Distribution.of(lengths),
        length_values=lengths,
        truncated=sum(row.truncated for row in usable),
        sources=list(sources),
    )


def _modalities(rows: Sequence[RowFacts]) -> list[tuple[str, int]]:
    """Return the modalities with their numbers of rows; empty if no row names one."""
    counts = Counter(row.modality or "unknown" for row in rows)
    return [] if counts.keys() <= {"unknown"} else counts.most_common(MAX_LISTED)


def findings(
    splits: Mapping[str, Sequence[RowFacts]], max_length: int | None, suffixes: tuple[str, ...] = ()
) -> list[Finding]:
    """Return all findings that have rows, errors first.

    Args:
        splits: Facts of the rows by split.
        max_length: Maximum number of tokens of a sample; None: unknown.
        suffixes: Suffixes of image files.
    """
    rows = [row for split in splits.values() for row in split]
    usable = [row for row in rows if not row.error]
    results = [
        _unusable(rows),
        *_duplicates(usable),
        _patients(usable),
        _truncated(usable, max_length),
        *_suspicious(usable),
        *_warnings(usable),
        _spellings(usable),
        _without_row(rows, suffixes),
    ]
    return sorted((finding for finding in results if finding.count), key=lambda finding: not finding.is_error)


def _finding(title: str, advice: str, lines: Sequence[str], is_error: bool = False) -> Finding:
    return Finding(title, advice, list(lines[:MAX_LISTED]), len(lines), is_error)


def _unusable(rows: Sequence[RowFacts]) -> Finding:
    lines = [f"{row.split}: {row.error}" for row in rows if row.error]
    advice = "Training stops at such a row, or leaves it out with data_args.on_error='skip'."
    return _finding("Rows that cannot be used", advice, lines, is_error=True)


def _without_row(rows: Sequence[RowFacts], suffixes: tuple[str, ...]) -> Finding:
    """Return the images that no row names, in the folders of the images of all rows."""
    used = {os.path.realpath(file) for row in rows for file in row.files}
    images = [
        os.path.relpath(entry.path)
        for folder in sorted({os.path.dirname(file) for file in used})
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(suffixes)
        and not is_hidden(entry.name)
        and os.path.realpath(entry.path) not in used
    ]
    return _finding("Images without a row", "A row is missing, or the config leaves them out.", sorted(images))


def _duplicates(rows: Sequence[RowFacts]) -> tuple[Finding, Finding]:
    """Return images with equal pixels in several splits, and those of several patients."""
    by_image: dict[str, dict[tuple[str, int], RowFacts]] = defaultdict(dict)
    for row in rows:
        for image in row.images:
            by_image[image.digest][row.split, row.number] = row
    splits, patients = [], []
    for group in by_image.values():
        by_split: dict[str, RowFacts] = {}
        by_patient: dict[str, RowFacts] = {}
        for row in group.values():
            by_split.setdefault(row.split, row)
            if row.patient is not None:
                by_patient.setdefault(row.patient, row)
        if len(by_split) > 1:
            splits.append(" = ".join(f"{split}: {row.location}" for split, row in by_split.items()))
        if len(by_patient) > 1:
            patients.append(" = ".join(row.location for row in by_patient.values()))
    return (
        _finding(
            "Images with equal pixels in several splits",
            "Metrics are too good if a test image is also a training image: keep each image in one split.",
            splits,
            is_error=True,
        ),
        _finding("Images with equal pixels of several patients", "One patient may have two ids.", patients),
    )


def _patients(rows: Sequence[RowFacts]) -> Finding:
    """Return the patients with rows in several splits."""
    splits: dict[str, dict[str, RowFacts]] = defaultdict(dict)
    for row in rows:
        if row.patient is not None:
            splits[row.patient].setdefault(row.split, row)
    lines = [
        " and ".join(f"{split}: {row.location}" for split, row in first_rows.items())
        for first_rows in splits.values()
        if len(first_rows) > 1
    ]
    return _finding("Patients in several splits", "Split the rows with PatientSplit.", lines, is_error=True)


def _truncated(rows: Sequence[RowFacts], max_length: int | None) -> Finding:
    lines = [f"{row.split}: {row.location}" for row in rows if row.truncated]
    advice = f"The ends of their answers are not learned: raise model_args.max_length ({max_length})."
    return _finding("Samples truncated to max_length", advice, lines)


def _suspicious(rows: Sequence[RowFacts]) -> list[Finding]:
    """Return images that are nearly constant, very small or very elongated."""
    kinds: list[tuple[str, str, Callable[[int, int, float], bool]]] = [
        (
            "Nearly constant images",
            "Check the window and the headers of the files: a model cannot learn from an image without contrast.",
            lambda width, height, std: std < MIN_STD,
        ),
        (
            f"Images with a side below {MIN_SIDE} pixels",
            "They may be thumbnails or damaged exports.",
            lambda width, height, std: min(width, height) < MIN_SIDE,
        ),
        (
            f"Images with an aspect ratio above {MAX_ASPECT_RATIO:g}",
            "Resizing to a square distorts them: set model_args.pad_to_square.",
            lambda width, height, std: max(width, height) > MAX_ASPECT_RATIO * min(width, height),
        ),
    ]
    results = []
    for title, advice, applies in kinds:
        lines = [
            f"{row.split}: {row.location} ({image.width} x {image.height} pixels, mean {image.mean:.0f} of 255)"
            for row in rows
            for image in row.images
            if applies(image.width, image.height, image.std)
        ]
        results.append(_finding(title, advice, lines))
    return results


def _warnings(rows: Sequence[RowFacts]) -> list[Finding]:
    """Return rows whose files have text in their pixels, and those with other warnings of their readers."""
    text = [f"{row.split}: {row.location}" for row in rows if BURNED_IN in row.warnings]
    others = [(row, [kind for kind in row.warnings if kind not in (BURNED_IN, CONSTANT)]) for row in rows]
    lines = [f"{row.split}: {row.location}: {', '.join(kinds)}" for row, kinds in others if kinds]
    return [
        _finding(
            "Images with text in their pixels, or probably with text",
            "If it names the patient, mask or crop it, or leave the row out.",
            text,
        ),
        _finding("Files with warnings of their readers", "The log has the reason for each kind.", lines),
    ]


def _spellings(rows: Sequence[RowFacts]) -> Finding:
    """Return answers that occur once and resemble a frequent answer."""
    counts = Counter(row.answer for row in rows if row.answer)
    lines = []
    if len(counts) <= MAX_ANSWERS:
        frequent = {_folded(answer): answer for answer, count in counts.most_common() if count > 1}
        for row in rows:
            if row.answer and counts[row.answer] == 1 and not any(letter.isdigit() for letter in row.answer):
                near = difflib.get_close_matches(_folded(row.answer), frequent, n=1, cutoff=0.8)
                if near:
                    lines.append(f"{row.split}: {row.location}: '{row.answer}', elsewhere '{frequent[near[0]]}'")
    return _finding("Answers that occur once and resemble a frequent one", "They are probably misspelled.", lines)


def _folded(text: str) -> str:
    """Return a text without differences of case and white space."""
    return " ".join(text.casefold().split())
