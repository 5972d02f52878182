"""Evaluation of a split by generated answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from mllm.engine.option_scores import candidates_of, score_options
from mllm.errors import ConfigError, UserError, errors_of_row
from mllm.metrics.areas import box_of, boxes_of
from mllm.metrics.coco import rle
from mllm.metrics.scoring import Entry, Scorer
from mllm.models.generation.answers import answers
from mllm.parsing import options_in
from mllm.private_messages import add_row, in_row, is_private, sentence_of
from mllm.structures import Answer, Bundle, Failure, Sample

GENERATION, OPTIONS = "generation", "options"
"""Values of the option `scoring` of an evaluation."""


class Samples(Protocol):
    """Dataset of samples."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return the sample of a row in an epoch."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Predictions and figures of a split."""

    rows: list[dict[str, Any]]
    """One dict per row with `prediction` and `reference`; see `evaluate_split`."""
    figures: dict[str, dict[str, float]]
    """Metric -> figure -> value."""
    scored: dict[str, int]
    """Metric -> number of rows whose reference has what the metric reads."""
    failures: list[Failure]
    """Rows that could not be used."""
    answers: list[tuple[int, Answer, Answer]]
    """Index, prediction and reference of each row of `rows`."""

    @property
    def skipped(self) -> list[str]:
        """Return the error message of each row that could not be used."""
        return [failure.message for failure in self.failures]


class _SplitReader:
    """Iterator over the samples of a split that records their questions and references.

    With `skip_failures`, rows that cannot be read or encoded are skipped and added to `failures`.
    """

    def __init__(
        self, bundle: Bundle, samples: Samples, skip_failures: bool, split: str, choices: Sequence[str] | None = None
    ) -> None:
        self.choices = choices
        """Options of questions that list none, if options are scored; None: answers are generated."""
        self.bundle, self.samples, self.skip_failures, self.split = bundle, samples, skip_failures, split
        self.numbers: list[int] = []
        """Index of each row, from which the seed of its answer is derived."""
        self.rows: list[dict[str, Any]] = []
        self.references: list[Answer] = []
        self.failures: list[Failure] = []
        self._patients: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self.samples)):
            try:
                sample, reference = self._read(index)
            except UserError as error:
                with in_row(self.split, index):
                    if not self.skip_failures:
                        add_row(error)
                        raise
                    self.failures.append(Failure(sentence_of(error), (index, 0)))
                continue
            question = next((turn.text for turn in reversed(sample.turns) if turn.role == "user"), "")
            self.numbers.append(index)
            reference = replace(reference, group=sample.group, task=sample.task, spacings=sample.spacings)
            reference = replace(reference, options=options_in(question))
            self.references.append(reference)
            origin = origin_fields(sample, f"{self.split}, row {index + 1}") | self._group_fields(sample)
            self.rows.append({**origin, "question": question, "reference": reference.text})
            yield sample

    def _group_fields(self, sample: Sample) -> dict[str, Any]:
        """Return the patient and the task of a row, if they are known; a number for the patient in a private run."""
        fields: dict[str, Any] = {}
        if sample.group is not None:
            number = self._patients.setdefault(sample.group, len(self._patients) + 1)
            fields["patient"] = str(number) if is_private() else sample.group
        return fields if sample.task is None else {**fields, "task": sample.task}

    def _read(self, index: int) -> tuple[Sample, Answer]:
        """Return the sample of a row and its reference. Raise `UserError` if the row cannot be used."""
        with in_row(self.split, index), errors_of_row(f"row {index + 1} of the data"):
            sample = self.samples.sample(index)
            if self.skip_failures or is_private():  # so that the error of a prompt has its row
                self.bundle.encoder.prompt(sample)
            if self.choices is not None:
                candidates_of(sample, self.choices)
            return sample, self.bundle.encoder.reference(sample)


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


def evaluate_split(
    bundle: Bundle,
    samples: Samples,
    metrics: Mapping[str, Entry],
    skip_failures: bool = False,
    split: str = "test",
    **options: Any,
) -> Evaluation:
    """Generate an answer to every row of a split and compute the metrics.

    A row has the fields of `origin_fields`, `patient` and `task` if they are known, `question`, `reference`,
    `prediction`, `tokens` (generated, including the end of the turn), the fields of `mark_fields` of the
    prediction and, prefixed by `reference_`, those of the reference, and `pixel_spacings` (width and height of a pixel
    of each image in mm) if they are known. Boxes that the question names are not part of an answer.

    Args:
        bundle: Model and encoder.
        samples: The split.
        metrics: Name -> metric.
        skip_failures: Skip rows that cannot be used.
        split: Name of the split, for messages of private runs.
        options: Options of `generate`. `scoring='options'` compares the likelihoods of options instead of generating
            an answer; `choices` are the options of questions that list none. The probabilities are in `scores`.

    Raises:
        DataError: A row cannot be used and `skip_failures` is False.
    """
    scoring, choices = options.pop("scoring", GENERATION), options.pop("choices", ())
    if scoring not in (GENERATION, OPTIONS):
        raise ConfigError(f"data_args.gen_kwargs.scoring must be '{GENERATION}' or '{OPTIONS}', not {scoring!r}")
    reader = _SplitReader(bundle, samples, skip_failures, split, choices if scoring == OPTIONS else None)
    if scoring == OPTIONS:
        predictions = score_options(bundle, reader, choices=choices, **options)
    else:
        predictions = answers(bundle, reader, numbers=reader.numbers, **options)
    rows = [
        {
            **row,
            "prediction": prediction.text,
            "tokens": prediction.tokens,
            **({"scores": prediction.scores} if prediction.scores else {}),
            **mark_fields(prediction),
            **mark_fields(reference, "reference_"),
            **({"pixel_spacings": reference.spacings} if reference.spacings else {}),
        }
        for row, prediction, reference in zip(reader.rows, predictions, reader.references, strict=True)
    ]
    scorer = Scorer(metrics)
    for prediction, reference in zip(predictions, reader.references, strict=True):
        scorer.add(prediction, reference)
    answered = list(zip(reader.numbers, predictions, reader.references, strict=True))
    return Evaluation(rows, scorer.figures(), scorer.scored(), reader.failures, answered)


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


INTERVAL = ("_ci_low", "_ci_high")
"""Ends of the names of the limits of a 95 % interval."""


def format_figures(figures: Mapping[str, float]) -> str:
    """Format figures as one line: `accuracy 0.8750 [0.8125, 0.9375], failed 3`."""
    return ", ".join(f"{name} {value}" for name, value in formatted(figures).items())


def formatted(figures: Mapping[str, float], scale: float = 1.0, decimals: int = 4) -> dict[str, str]:
    """Return each figure as text, with its 95 % interval in brackets if it has one.

    Args:
        figures: Figures, and the limits of their intervals (`accuracy_ci_low`, `accuracy_ci_high`).
        scale: Factor of the values.
        decimals: Digits after the point of numbers that are not whole.
    """
    texts = {}
    for name, value in figures.items():
        if name.endswith(INTERVAL):
            continue
        limits = [figures[name + end] for end in INTERVAL if name + end in figures]
        shown = ", ".join(format_number(scale * limit, decimals) for limit in limits)
        texts[name] = format_number(value if isinstance(value, int) else scale * value, decimals) + (
            f" [{shown}]" if limits else ""
        )
    return texts


def format_number(value: float, decimals: int = 4) -> str:
    """Format an integer with separators of thousands, any other number with `decimals` digits after the point."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.{decimals}f}"


def _rounded(numbers: Sequence[float]) -> list[float]:
    return [round(float(value), 1) for value in numbers]
