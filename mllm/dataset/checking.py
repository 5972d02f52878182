"""Check of every row of every split before weights are loaded: contents, files, marks, measures and patients."""

from __future__ import annotations

import heapq
import logging
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter

import numpy as np

from mllm.dataset.answer_counts import AnswerCounts
from mllm.dataset.answer_forms import AnswerForms
from mllm.dataset.base import SampleDataset
from mllm.dataset.contents import ContentDigest
from mllm.dataset.echo.plausibility import ImplausibleMeasures
from mllm.dataset.inspection import InspectedRow, SplitRows
from mllm.dataset.mark_forms import MarkForms
from mllm.dataset.measure_tables import measure_table
from mllm.dataset.mixing import SPLITS
from mllm.dataset.patients import Patients, check_leakage
from mllm.dataset.progress import with_progress
from mllm.dataset.repeated_rows import RowHashes, warn_of_repeated_rows
from mllm.errors import ROW_ADVICE, DataError, UserError, advised
from mllm.private_messages import PublicText, error_of, in_row, in_split, is_private, sentence_of
from mllm.structures import BOX, IMAGE, POINT, Failure, Sample

logger = logging.getLogger(__name__)

DECODED = 16
"""Number of rows of a split whose images are decoded."""
LONGEST = 16
"""Number of the longest rows of a split that are kept in its report."""
IMAGE_LENGTH = 1000
"""Number of characters that count as the length of an image."""
_CHARACTERS = 4
"""Number of characters of an English token. A digit, a sign or a character of another script counts as a token."""
_OF_WORDS = f"{string.ascii_letters} ".encode()
MAX_TOKENS = 200
"""Maximum number of different texts in the form of a special token of which a row is kept."""
_TOKEN_LIKE = re.compile(r"<[^\s<>]{1,40}>|\[/?[A-Z_]{2,20}\]")
_PLACEHOLDERS = (IMAGE, BOX, POINT)


@dataclass(frozen=True)
class CheckedRow:
    """Row of a split."""

    number: int
    """Number of the row in its split, from 0."""
    source: SampleDataset
    index: int
    """Index of the row in its source."""


def text_length(text: str) -> int:
    """Return the length of a text in characters of English with about the same number of tokens."""
    others = text.encode("ascii", "replace").translate(None, _OF_WORDS)
    return len(text) + (_CHARACTERS - 1) * len(others)


class LongestRows:
    """Rows with the longest texts of a split, by `text_length`."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, SampleDataset, int]] = []

    def add(self, sample: Sample, source: SampleDataset, index: int, number: int) -> None:
        """Read row `index` of a dataset, which is row `number` of its split; rows without turns are left out."""
        length = sum(text_length(turn.text) + IMAGE_LENGTH * turn.text.count(IMAGE) for turn in sample.turns)
        if length:
            change = heapq.heappush if len(self._heap) < LONGEST else heapq.heappushpop
            change(self._heap, (length, -number, source, index))

    def __iter__(self) -> Iterator[CheckedRow]:
        """Yield the rows, the longest first."""
        ordered = sorted(self._heap, key=itemgetter(0, 1), reverse=True)
        return iter([CheckedRow(-number, source, index) for _, number, source, index in ordered])


@dataclass
class SplitReport:
    """Result of the check of one split."""

    patients: int = 0
    """Number of known patients."""
    without_patient: int = 0
    """Number of rows whose patient is unknown."""
    skipped: dict[str, SampleDataset | None] = field(default_factory=dict)
    """Error message of each unusable row, in one line -> its source dataset. None: found before a resume."""
    content: str = ""
    """Digest of all rows; see `ContentDigest`."""
    answers: AnswerCounts = field(default_factory=AnswerCounts)
    longest: LongestRows = field(default_factory=LongestRows)
    token_like: dict[str, CheckedRow] = field(default_factory=dict)
    """Text in the form of a special token, such as `<eos>` -> the first row that contains it."""
    modalities: Counter[str] = field(default_factory=Counter)
    """Numbers of rows by modality; rows whose modality is unknown are not in it."""

    def __str__(self) -> str:
        """Return the patients for the log."""
        if not self.patients:
            return "patients unknown"
        known = "1 patient" if self.patients == 1 else f"{self.patients:,} patients"
        return known + (f" and {self.without_patient:,} rows without one" if self.without_patient else "")


class Splits(dict[str, SampleDataset]):
    """Datasets of a run by split, with the results of their checks."""

    def __init__(self, datasets: Mapping[str, SampleDataset], reports: Mapping[str, SplitReport]) -> None:
        super().__init__(datasets)
        self.reports = reports

    @cached_property
    def measure_tables(self) -> dict[str, dict[str, np.ndarray]]:
        """Measures of each split; see `measure_table`."""
        return {name: measure_table(split) for name, split in self.items()}

    def skipped(self) -> list[tuple[str, str]]:
        """Return split and error message of all unusable rows."""
        return [(name, message) for name, report in self.reports.items() for message in report.skipped]

    def add_skipped(self, rows: Iterable[tuple[str, Failure]]) -> None:
        """Add rows that were found unusable later, as their splits and failures; a row that is known counts once."""
        for split, failure in rows:
            skipped = self.reports[split].skipped
            if skipped.get(failure.message) is None:
                source = None if failure.draw is None else self[split].source_dataset(*failure.draw)
                skipped[failure.message] = source


def check_splits(
    splits: Mapping[str, SampleDataset], skip: bool = False, advice: str = ROW_ADVICE, workers: int = 0
) -> Splits:
    """Check all rows of all splits. The images of a few evenly spaced rows are decoded.

    Args:
        splits: Datasets by name of the split.
        skip: True: report unusable rows; False: raise the error of the first one.
        advice: End of that error: the ways to correct it.
        workers: Number of processes that inspect the rows of large splits; see `SplitRows`.

    Raises:
        DataError: A row cannot be used, marks have another form than their class reads, or a patient is in two splits.
    """
    reports, patients, rows = {}, {}, {}
    for name, dataset in splits.items():
        reports[name], patients[name], rows[name] = _check_split(
            SplitRows(name, dataset), None if skip else advice, workers
        )
    check_leakage(patients)
    warn_of_repeated_rows(rows)
    return Splits(splits, reports)


def _check_patient(sample: Sample, inspected: Sample, source: SampleDataset, index: int) -> None:
    """Raise `DataError` if the sample of a row has another patient than `inspect` and `group`, which are checked."""
    if sample.group not in (None, inspected.group):
        raise DataError.at(
            source.describe(index),
            f"{type(source).__name__}.sample returns another patient than {type(source).__name__}.group: return the "
            "same one, or no group in the sample",
        )


def _decoded(row: InspectedRow, source: SampleDataset, index: int) -> InspectedRow | str:
    """Decode the images of a row; return the row, or the sentence of the error."""
    try:
        _check_patient(source.sample(index), row.sample, source, index)
    except UserError as error:
        return sentence_of(error)
    return row


def _token_like(sample: Sample) -> Iterator[str]:
    """Yield the texts in the turns of a sample that have the form of a special token."""
    for turn in sample.turns:
        if "<" in turn.text or "[" in turn.text:
            yield from (text for text in _TOKEN_LIKE.findall(turn.text) if text not in _PLACEHOLDERS)


def _check_split(split: SplitRows, advice: str | None, workers: int) -> tuple[SplitReport, Patients, RowHashes]:
    """Check the rows of one split; return its report, patients and rows. `advice` is None to skip unusable rows."""
    report, patients, content, hashes = SplitReport(), Patients(), ContentDigest(), RowHashes()
    forms: dict[int, MarkForms] = {}
    name = split.name
    measures, answers = ImplausibleMeasures(name), AnswerForms(name)
    step = -(-split.count // DECODED)
    inspected = with_progress(split.inspected(workers), f"checking the rows of {name}", split.count)
    for number, (source, index, row) in enumerate(inspected):
        with in_row(name, number):
            if number % step == 0 and source.reads_files and isinstance(row, InspectedRow):
                row = _decoded(row, source, index)
            if isinstance(row, str):
                report.skipped[row] = source
                content.add_unusable()
                continue
            sample = row.sample
            content.add(row.content)
            if row.identity is not None:
                hashes.add(row.identity)
            report.answers.add(sample)
            answers.add(sample, source, index)
            report.longest.add(sample, source, index, number)
            if len(report.token_like) < MAX_TOKENS:
                for text in _token_like(sample):
                    report.token_like.setdefault(text, CheckedRow(number, source, index))
            patients.add(sample.group, source, index)
            if sample.modality is not None:
                report.modalities[sample.modality] += 1
            if sample.marks:
                if id(source) not in forms:
                    forms[id(source)] = MarkForms(source)
                forms[id(source)].add(sample, index)
            if sample.measures:
                measures.add(sample.measures, source, index)
    patients.check_forms()
    if report.skipped and advice is not None:
        first, others = next(iter(report.skipped)), len(report.skipped) - 1
        more = f" ({others:,} other row{'s' * (others > 1)} of {name} cannot be used, either)" if others else ""
        if others and len(report.skipped) == split.count:  # without these rows nothing would be left
            fix = "correct the rows" + (f", or the options in data_args.{name}" if name in SPLITS else "")
            more, advice = "", f"no other row of {name} can be used, either: {fix}"
        raise error_of(advised(first + more, advice))
    if len(report.skipped) == split.count:
        kind = "training" if name == "train" else name
        raise error_of(f"no row of the {kind} split could be used; one of them: {next(iter(report.skipped))}")
    for form in forms.values():
        with in_split(name):
            form.check()
    measures.report()
    answers.report()
    report.patients, report.without_patient, report.content = len(patients), patients.unknown, content.hexdigest()
    for source in patients.sources_without:
        if hint := source.patient_hint():
            where = "the data" if is_private() else source.describe(0)
            end = "" if is_private() else hint
            logger.warning("%s", PublicText(f"{where}: no row of {name} has a patient{end}"))
    return report, patients, hashes
