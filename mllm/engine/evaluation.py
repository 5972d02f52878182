"""Evaluation of a split by answers: they are generated, written as they come, and scored."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from accelerate import PartialState
from tqdm import tqdm

from mllm.engine.answered_rows import Indices, Row, Rows
from mllm.engine.answering import Answerer, ModelAnswers
from mllm.engine.predictions import answers_of
from mllm.engine.unfinished import Record, UnfinishedPredictions
from mllm.engine.windows import windows_of
from mllm.errors import UserError, errors_of_row
from mllm.metrics.areas import box_of, boxes_of
from mllm.metrics.coco import rle
from mllm.metrics.parts import hash_of
from mllm.metrics.scoring import Entry, Scorer
from mllm.private_messages import add_row, in_row, is_private, sentence_of
from mllm.protocols import Bundle
from mllm.structures import Answer, Failure, Sample


class Samples(Protocol):
    """Dataset of samples."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return the sample of a row in an epoch."""
        ...

    def group(self, index: int, epoch: int = 0) -> str | None:
        """Return the patient of a row."""
        ...


class Ordered(Protocol):
    """Records in the order of a split."""

    def answered(self) -> np.ndarray:
        """Return the indices of the rows that have an answer, increasing."""
        ...

    def skipped(self) -> np.ndarray:
        """Return the indices of the rows that were skipped, increasing."""
        ...

    def chosen(self, indices: np.ndarray) -> Iterator[Record]:
        """Yield the records of rows, for any number of passes."""
        ...


class Records(Protocol):
    """Source of the records of an evaluation, such as its files."""

    def ordered(self, rows: int, with_skipped: bool) -> Ordered:
        """Return the records in the order of the split; see `UnfinishedPredictions`."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Predictions and figures of a split."""

    rows: Rows
    """Rows with `prediction` and `reference`; see `answer_split`. They are read from the files of the evaluation."""
    figures: dict[str, dict[str, float]]
    """Metric -> figure -> value."""
    scored: dict[str, int]
    """Metric -> number of rows whose reference has what the metric reads."""
    failures: list[Failure]
    """Rows that could not be used."""
    continued: int = 0
    """Number of rows that a former call had answered."""
    tokens: int = 0
    """Number of generated tokens."""
    unreadable: int = 0
    """Number of predicted objects that cannot be parsed."""
    strata: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Figures by stratum; see `stratified`."""

    @property
    def skipped(self) -> list[str]:
        """Return the error message of each row that could not be used."""
        return [failure.message for failure in self.failures]

    def predictions(self) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each of `rows` in the split, and the predicted answer."""
        return ((index, answers_of(row)[0]) for index, row in self.rows.numbered())


class _SplitReader:
    """Reader of the samples of a split, their references, and the fields of their rows.

    Args:
        answerer: Source of the answers.
        samples: The split.
        skip_failures: Let rows that cannot be used be skipped.
        split: Name of the split.
    """

    def __init__(self, answerer: Answerer, samples: Samples, skip_failures: bool, split: str) -> None:
        self.answerer, self.samples, self.skip_failures, self.split = answerer, samples, skip_failures, split

    def read(self, index: int) -> tuple[Sample, Row, Answer] | str:
        """Return the sample of a row, the fields of its origin and question, and its reference.

        Returns:
            The error message of a row that is skipped.

        Raises:
            UserError: The row cannot be used and is not skipped.
        """
        try:
            with in_row(self.split, index), errors_of_row(f"row {index + 1} of the data"):
                sample = self.samples.sample(index)
                self.answerer.check(sample)
                reference = self.answerer.reference(sample)
        except UserError as error:
            with in_row(self.split, index):
                if not self.skip_failures:
                    add_row(error)
                    raise
                return sentence_of(error)
        question = next((turn.text for turn in reversed(sample.turns) if turn.role == "user"), "")
        fields = origin_fields(sample, f"{self.split}, row {index + 1}")
        # The patients of a private run are numbered after all rows were answered.
        fields |= {} if sample.group is None or is_private() else {"patient": sample.group}
        values = {"task": sample.task, "label": sample.label}
        fields |= {name: value for name, value in values.items() if value is not None}
        fields |= {"question": question, "reference": reference.text}
        return sample, fields, replace(reference, spacings=sample.spacings)


def evaluate_split(
    bundle: Bundle,
    samples: Samples,
    metrics: Mapping[str, Entry],
    skip_failures: bool = False,
    split: str = "test",
    **options: Any,
) -> Evaluation:
    """Evaluate a model on a split by one process, without continuation; `options` are those of `ModelAnswers`."""
    answerer = ModelAnswers(bundle, checks_prompts=skip_failures or is_private(), **options)
    with TemporaryDirectory() as folder:
        files = UnfinishedPredictions(Path(folder), {})
        files.open()
        answer_split(answerer, samples, files, skip_failures, split)
        files.close()
        evaluation = score_split(samples, files, metrics, skip_failures)
        return replace(evaluation, rows=Rows.of(list(evaluation.rows.numbered())))


def answer_split(
    answerer: Answerer,
    samples: Samples,
    files: UnfinishedPredictions,
    skip_failures: bool = False,
    split: str = "test",
    progress: bool = True,
    groups: Sequence[int] | np.ndarray | None = None,
) -> int:
    """Answer the rows of a split that have no answer yet, and append them to the open file of this process.

    Every process takes its share: windows of rows, which do not depend on the number of processes. A window with rows
    that were answered before is divided into the same batches again. All processes leave together.

    A row has the fields of `origin_fields`, `patient`, `task` and `label` if they are known, `question`, `reference`,
    `prediction`, `tokens` (generated, including the end of the turn), `scores` of options, the fields of `mark_fields`
    of the prediction and, prefixed by `reference_`, those of the reference, and `pixel_spacings` (width and height of a
    pixel of each image in mm) if they are known. Boxes that the question names are not part of an answer.

    Args:
        answerer: Source of the answers.
        samples: The split.
        files: Files of the predictions.
        skip_failures: Skip rows that cannot be used.
        split: Name of the split, for messages of private runs.
        progress: Show a progress bar.
        groups: Group of each row, such as that of its images; see `windows_of`.

    Returns:
        Number of rows that had an answer before.

    Raises:
        UserError: A row cannot be used and `skip_failures` is False.
    """
    state = PartialState()
    known = (record["index"] for record in files.records() if skip_failures or "row" in record)
    answered = Indices(len(samples), known)
    state.wait_for_everyone()  # before a process appends
    reader = _SplitReader(answerer, samples, skip_failures, split)
    windows = windows_of(len(samples), answerer.window, groups)
    with tqdm(total=len(samples), desc="answers", disable=None if progress else True) as bar:  # None: no terminal
        for number in range(state.process_index, len(windows), state.num_processes):
            window = windows.rows(number)
            bar.update(windows.starts[number] - bar.n)
            if not all(index in answered for index in window):
                for records in _answered_window(answerer, reader, window, answered):
                    files.append(records)
                    bar.update(len(records))
        bar.update(len(samples) - bar.n)
    state.wait_for_everyone()
    return len(answered)


def _answered_window(
    answerer: Answerer, reader: _SplitReader, window: Sequence[int], answered: Container[int]
) -> Iterator[list[Record]]:
    """Yield the records of the rows of a window that are not answered yet, some at a time.

    Raises:
        UserError: A row cannot be used or answered and is not skipped. All other answers were yielded before.
    """
    usable: dict[int, Sample] = {}
    rows: dict[int, tuple[Row, Answer]] = {}
    skipped: list[Record] = []
    for index in window:
        result = reader.read(index)
        if isinstance(result, str):
            skipped.append({"index": index, "skipped": result})
        else:
            sample, fields, reference = result
            usable[index], rows[index] = sample, (fields, reference)
    yield [record for record in skipped if record["index"] not in answered]
    failures: list[UserError] = []
    for batch in answerer.answers(usable, answered):
        records: list[Record] = []
        for index, prediction in batch.items():
            if isinstance(prediction, Answer):
                records.append({"index": index, "row": _row(*rows[index], prediction)})
            elif reader.skip_failures:
                with in_row(reader.split, index):
                    records.append({"index": index, "skipped": sentence_of(prediction)})
            else:
                with in_row(reader.split, index):
                    add_row(prediction)
                failures.append(prediction)
        yield [record for record in records if record["index"] not in answered]
    if failures:
        raise failures[0]


def _row(fields: Row, reference: Answer, prediction: Answer) -> Row:
    """Return the row of a prediction."""
    return {
        **fields,
        "prediction": prediction.text,
        "tokens": prediction.tokens,
        **({"scores": prediction.scores} if prediction.scores else {}),
        **mark_fields(prediction),
        **mark_fields(reference, "reference_"),
        **({"pixel_spacings": reference.spacings} if reference.spacings else {}),
    }


def score_split(
    samples: Samples,
    records: Records,
    metrics: Mapping[str, Entry],
    skip_failures: bool = False,
    continued: int = 0,
) -> Evaluation:
    """Return the rows of all processes in the order of the split, and the figures of their metrics.

    Figures are functions of the rows as they are written, so that they can be computed again from `predictions.jsonl`.
    Rows are read one by one, and again for each pass over `Evaluation.rows`.

    Args:
        samples: The split.
        records: Records of an answer to every row.
        metrics: Name -> metric.
        skip_failures: Rows that cannot be used were skipped.
        continued: Number of rows that a former call had answered.
    """
    ordered = records.ordered(len(samples), skip_failures)
    answered = ordered.answered()
    numbers = _patient_numbers(samples, answered) if is_private() else None

    def read(indices: np.ndarray) -> Iterator[Row]:
        rows = (record["row"] for record in ordered.chosen(indices))
        return rows if numbers is None else map(_with_patient, rows, numbers[indices].tolist())

    rows, scorer, tokens, unreadable = Rows(answered, read), Scorer(metrics), 0, 0
    for row in rows:
        scorer.add(*answers_of(row))
        tokens, unreadable = tokens + row["tokens"], unreadable + row.get("unreadable", 0)
    skipped = ordered.chosen(ordered.skipped())
    failures = [Failure(record["skipped"], (record["index"], 0)) for record in skipped]
    return Evaluation(rows, scorer.figures(), scorer.scored(), failures, continued, tokens, unreadable)


def _patient_numbers(samples: Samples, indices: np.ndarray) -> np.ndarray:
    """Return a number from 1 for the patient of each row of a split, in the order of the first rows of patients.

    Args:
        samples: The split.
        indices: Indices of the rows with an answer, increasing.

    Returns:
        [N]; 0 for a row without a patient or an answer. Patients are compared by hashes of 64 bits.
    """
    numbers, hashes = np.zeros(len(samples), np.int64), np.zeros(len(indices), np.uint64)
    is_known = np.zeros(len(indices), bool)
    for place, index in enumerate(indices.tolist()):
        patient = samples.group(index)
        if patient is not None:
            is_known[place], hashes[place] = True, hash_of(patient)
    _, first, places = np.unique(hashes[is_known], return_index=True, return_inverse=True)
    numbers[indices[is_known]] = 1 + np.argsort(np.argsort(first))[places]
    return numbers


def _with_patient(row: Row, number: int) -> Row:
    """Return the row of a private run with the number of its patient; 0: it has none."""
    return {"source": row["source"], **({"patient": str(number)} if number else {}), **row}


def origin_fields(sample: Sample, row: str) -> dict[str, Any]:
    """Return the fields of a row of `predictions.jsonl` about its origin: `source`, and `images` if it has files.

    Names of tables and images may be those of patients, so `source` is `row` in a private run, and there are no
    `images`.

    Args:
        sample: The sample of the row.
        row: Split and number of the row: `test, row 3`.
    """
    if is_private():
        return {"source": row}
    return {"source": sample.source, **({"images": sample.files} if sample.files else {})}


def mark_fields(answer: Answer, prefix: str = "") -> dict[str, Any]:
    """Return the marks and measures of an answer as fields of a JSON row. Empty fields are omitted.

    Args:
        answer: The answer.
        prefix: Prefix of the names of the fields.

    Returns:
        `boxes`: x1 y1 x2 y2 in pixels of the image, rounded to 0.1; a mark with only a mask has its bounding box.
        `points`: x y in pixels, rounded to 0.1. `masks`: run lengths of COCO, compressed. `mask_boxes`: index of the
        box of each mask, -1 for an empty mask, unless masks and boxes have the same order. `box_images`: index of the
        image of each box, from 0, unless all are in the first. `unreadable`: number of objects that cannot be parsed.
        `measures`: values in their units.
    """
    boxes = boxes_of(answer)
    with_box = [mark for mark in answer.marks if box_of(mark) is not None]
    owners = [
        next((index for index, other in enumerate(with_box) if other is mark), -1)
        for mark in answer.marks
        if mark.mask is not None
    ]
    fields: dict[str, Any] = {
        "boxes": [_rounded(box.corners) for box in boxes],
        "box_images": [box.image for box in boxes] if any(box.image for box in boxes) else [],
        "points": [_rounded(mark.point) for mark in answer.marks if mark.point is not None],
        "masks": [rle(mark.mask) for mark in answer.marks if mark.mask is not None],
        "mask_boxes": [] if owners == list(range(len(owners))) else owners,
        "unreadable": answer.unreadable,
        "measures": answer.measures,
    }
    return {prefix + name: value for name, value in fields.items() if value}


def _rounded(numbers: Sequence[float]) -> list[float]:
    return [round(float(value), 1) for value in numbers]
