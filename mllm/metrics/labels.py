"""F1 of answers with any number of labels."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mllm.metrics.base import CLASSIFICATION, LABELS, PartedMetric, computed_once, reads
from mllm.metrics.bootstrap import ClassCounts, by_rows
from mllm.metrics.distinct import DistinctTexts
from mllm.metrics.parts import ColumnSums, EntrySums
from mllm.parsing import (
    LETTERS,
    NONE_WORDS,
    normalize,
    parse_choice,
    parse_labels,
    parse_option,
    split_labels,
    split_parts,
    whole_option,
)
from mllm.registry import METRICS
from mllm.structures import Answer

Labels = frozenset[str]


class LabelSetMetric(PartedMetric):
    """Base of F1 of sets of labels: micro, macro and samples, as `f1_score` of scikit-learn with `zero_division=1`."""

    intervals = ("f1_micro", "f1_macro", "f1_samples", "exact_match")

    @abstractmethod
    def read(self, part: Any) -> list[tuple[Labels | None, Labels]]:
        """Return the labels of each answer of a part (None: failed) and of its reference."""

    @abstractmethod
    def labels(self) -> DistinctTexts:
        """Return the labels over which `f1_macro` is the mean."""

    @computed_once
    def table(self) -> _Table:
        """Return the sums of all samples."""
        labels = self.labels()
        entries = [EntrySums(len(labels) + 1) for _ in range(3)]  # the last one is the wrong label of failed answers
        columns, failed = ColumnSums(self.units, 3), 0
        for units, part in self.parts():
            pairs = self.read(part)
            for sums, (positions, names) in zip(entries, _entries(pairs), strict=True):
                sums.add(units[positions], labels.numbers_of(names))
            own = own_f1(pairs)
            columns.add(units, np.ones(len(own)), own, own == 1)
            failed += sum(answer is None for answer, _ in pairs)
        hits, wrong, missed = (sums.counts() for sums in entries)
        samples, own_sums, exact = columns.sums
        return _Table(len(labels), hits, wrong, missed, samples, own_sums, exact, failed)

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, U] of the units."""
        return by_rows(self._figures, weights, self.table().labels)

    def _figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        table = self.table()
        hits, wrong, missed = (counts(weights) for counts in (table.hits, table.wrong, table.missed))
        micro = [part.sum(axis=1) for part in (hits, wrong, missed)]
        of_labels = _f1(hits[:, :-1], wrong[:, :-1], missed[:, :-1])
        # A label that a bootstrap sample has neither in references nor in answers is left out of its mean.
        present = (hits + wrong + missed)[:, :-1] > 0
        total = weights @ table.samples
        with np.errstate(invalid="ignore", divide="ignore"):
            macro = np.where(present, of_labels, 0).sum(axis=1) / present.sum(axis=1)
            return {
                "f1_micro": _f1(*micro),
                "f1_macro": np.where(present.any(axis=1), macro, 1.0),
                "f1_samples": weights @ table.own / total,
                "exact_match": weights @ table.exact / total,
            }

    def counts(self) -> dict[str, float]:
        """Return the number of labels, of failed answers and of samples."""
        table = self.table()
        return {"labels": table.labels, "failed": table.failed, "samples": len(self)}


@METRICS.register_module(name="f1")
@reads("text")
class F1(LabelSetMetric):
    """F1 of labels: micro, macro and samples, as `f1_score` of scikit-learn with `zero_division=1`.

    Labels are separated by `;`, `|` or `,`: by the first of these that the references have. An answer of one class is
    one label. If the question lists options, labels are letters or texts of options. `none` and `no finding` mean no
    label, unless they are among other labels of a reference.

    An answer with a part that is not a label of the references is failed. It counts as no label: its labels are missed.
    Its own F1 is 0, and for a reference without labels it counts as one wrong label in `f1_micro`.

    Figures: `f1_micro` (over all labels of all samples), `f1_macro` (mean over the labels), `f1_samples` (mean over the
    samples; 1 if neither has a label), `exact_match` (fraction of equal sets), `labels`, `failed` and `samples`.
    """

    tasks = frozenset({CLASSIFICATION, LABELS})

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the answer to one sample."""
        options = tuple(reference.options.values())
        for answer, texts in ((prediction, self._answers), (reference, self._references)):
            text = _Text(answer.text, options, reference.task == CLASSIFICATION)
            self._pairs.append(texts.setdefault(text, len(texts)))

    def pending(self) -> int:
        """Return the number of samples that are kept."""
        return len(self._pairs) // 2

    def kept(self) -> _Part:
        """Return the answers and references that are kept."""
        return _Part(np.array(self._pairs, np.int64).reshape(-1, 2), list(self._answers), list(self._references))

    def forget(self) -> None:
        """Forget the answers and references that are kept."""
        self._answers: dict[_Text, int] = {}
        self._references: dict[_Text, int] = {}
        self._pairs = array("q")

    def read(self, part: _Part) -> list[tuple[Labels | None, Labels]]:
        """Return the labels of each answer of a part (None: failed) and of its reference."""
        atoms, vocabulary = self._atoms(), self.labels()
        references = [_reference_labels(text, atoms) for text in part.references]
        answers = [_labels(text, vocabulary) for text in part.answers]
        return [(answers[answer], references[reference]) for answer, reference in part.pairs.tolist()]

    @computed_once
    def _atoms(self) -> DistinctTexts:
        """Return the labels of the references that are separated by `;` or `|`."""
        atoms = DistinctTexts()
        for _, part in self.parts():
            for text in part.references:
                if ";" in text.content or "|" in text.content:
                    for label in split_labels(text.content):
                        atoms.add(label)
        return atoms

    @computed_once
    def labels(self) -> DistinctTexts:
        """Return the labels of the references."""
        labels, atoms = DistinctTexts(), self._atoms()
        for _, part in self.parts():
            for text in part.references:
                for label in sorted(_reference_labels(text, atoms)):
                    labels.add(label)
        return labels


@dataclass(frozen=True)
class _Text:
    """Text of an answer."""

    content: str
    options: tuple[str, ...]
    """Texts of the options that the question lists, in the order of their letters."""
    is_class: bool
    """True: the answer is one class, which may contain commas."""


class _Part(NamedTuple):
    """Answers and references of some samples."""

    pairs: np.ndarray
    """Numbers of the texts of answer and reference of each sample, [N, 2]."""
    answers: list[_Text]
    references: list[_Text]


@dataclass(frozen=True)
class _Table:
    """Sums of all samples."""

    labels: int
    """Number of labels."""
    hits: ClassCounts
    wrong: ClassCounts
    missed: ClassCounts
    samples: np.ndarray
    """Number of samples of each unit, [U]."""
    own: np.ndarray
    """Sum of the F1 of the samples of each unit, [U]."""
    exact: np.ndarray
    """Number of samples of each unit whose labels are those of the reference, [U]."""
    failed: int


def own_f1(pairs: Sequence[tuple[Labels | None, Labels]]) -> np.ndarray:
    """Return F1 of each pair of an answer and its reference, [N]; 0 for a failed answer, 1 if neither has a label."""
    own = np.zeros(len(pairs))
    for sample, (answer, reference) in enumerate(pairs):
        if answer is not None:
            size = len(answer) + len(reference)
            own[sample] = 2 * len(answer & reference) / size if size else 1.0
    return own


def _entries(pairs: Sequence[tuple[Labels | None, Labels]]) -> tuple[tuple[list[int], list[str]], ...]:
    """Return the positions of the samples and the labels of all hits, of all wrong, and of all missed labels.

    A failed answer to a reference without labels has the wrong label "", which no reference has.
    """
    parts: tuple[tuple[list[int], list[str]], ...] = ([], []), ([], []), ([], [])
    for sample, (answer, reference) in enumerate(pairs):
        predicted = answer or frozenset[str]()
        wrong = frozenset({""}) if answer is None and not reference else predicted - reference
        sets = (predicted & reference, wrong, reference - predicted)
        for (positions, names), labels in zip(parts, sets, strict=True):
            positions.extend([sample] * len(labels))
            names.extend(labels)
    return parts


def _f1(hits: np.ndarray, wrong: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """Return 2 tp / (2 tp + fp + fn); 1 if there is neither a label nor an answer."""
    size = 2 * hits + wrong + missed
    return np.where(size > 0, 2 * hits / np.where(size > 0, size, 1), 1.0)


def _reference_labels(text: _Text, atoms: Collection[str]) -> Labels:
    """Return the labels of a reference. `atoms` are labels that are known from others, which may contain commas."""
    chosen = _chosen(text)
    if chosen is not None:
        return chosen
    whole = normalize(text.content)
    if whole in NONE_WORDS or not whole:
        return frozenset()
    return frozenset({whole}) if text.is_class or whole in atoms else frozenset(split_labels(text.content))


def _labels(text: _Text, vocabulary: Collection[str]) -> Labels | None:
    """Return the labels of an answer, or None."""
    if text.options:
        return _chosen(text)
    if text.is_class:
        choice = parse_choice(text.content, vocabulary)
        return None if choice is None else frozenset({choice})
    return parse_labels(text.content, vocabulary)


def _chosen(text: _Text) -> Labels | None:
    """Return the texts of the options that an answer names by letter or text, or None."""
    options = dict(zip(LETTERS, text.options, strict=False))
    if not options:
        return None
    if normalize(text.content) in NONE_WORDS - {normalize(option) for option in text.options}:
        return frozenset()
    if text.is_class:
        letters = [parse_option(text.content, options)]
    else:
        whole = whole_option(text.content, options)
        letters = [whole] if whole else [whole_option(part, options) for part in split_parts(text.content)]
    if not letters or None in letters:
        return None
    return frozenset(normalize(options[letter]) for letter in letters if letter)
