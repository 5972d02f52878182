"""F1 of answers with any number of labels."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mllm.metrics.base import CLASSIFICATION, LABELS, StreamingMetric, computed_once, reads
from mllm.metrics.bootstrap import ClassCounts
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


class LabelSetMetric(StreamingMetric):
    """Base of F1 of sets of labels: micro, macro and samples, as `f1_score` of scikit-learn with `zero_division=1`."""

    intervals = ("f1_micro", "f1_macro", "f1_samples", "exact_match")

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def pairs(self) -> list[tuple[Labels | None, Labels]]:
        """Return the labels of each answer (None: failed) and of its reference."""

    def labels(self, pairs: Sequence[tuple[Labels | None, Labels]]) -> list[str]:
        """Return the labels over which `f1_macro` is the mean: those of the references."""
        return sorted(frozenset[str]().union(*(reference for _, reference in pairs)))

    @computed_once
    def table(self) -> _Table:
        """Return the labels of all samples."""
        pairs = self.pairs()
        return _table_of(pairs, self.labels(pairs))

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, N] of the samples."""
        table = self.table()
        hits, wrong, missed = (counts(weights) for counts in (table.hits, table.wrong, table.missed))
        micro = [part.sum(axis=1) for part in (hits, wrong, missed)]
        of_labels = _f1(hits[:, :-1], wrong[:, :-1], missed[:, :-1])
        # A label that a bootstrap sample has neither in references nor in answers is left out of its mean.
        present = (hits + wrong + missed)[:, :-1] > 0
        total = weights.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            macro = np.where(present, of_labels, 0).sum(axis=1) / present.sum(axis=1)
            return {
                "f1_micro": _f1(*micro),
                "f1_macro": np.where(present.any(axis=1), macro, 1.0),
                "f1_samples": weights @ table.own / total,
                "exact_match": weights @ (table.own == 1) / total,
            }

    def counts(self) -> dict[str, float]:
        """Return the number of labels, of failed answers and of samples."""
        table = self.table()
        return {"labels": len(table.labels), "failed": table.failed, "samples": len(table.own)}


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
        self._texts: dict[_Text, int] = {}
        self._pairs = array("q")

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the answer to one sample."""
        options = tuple(reference.options.values())
        for answer in (prediction, reference):
            text = _Text(answer.text, options, reference.task == CLASSIFICATION)
            self._pairs.append(self._texts.setdefault(text, len(self._texts)))

    def __len__(self) -> int:
        return len(self._pairs) // 2

    def pairs(self) -> list[tuple[Labels | None, Labels]]:
        """Return the labels of each answer (None: failed) and of its reference."""
        numbers = np.frombuffer(self._pairs, np.int64).reshape(-1, 2)
        used = set(numbers[:, 1].tolist())
        targets = {i: text for text, i in self._texts.items() if i in used}
        separated = [text.content for text in targets.values() if ";" in text.content or "|" in text.content]
        atoms = frozenset(label for text in separated for label in split_labels(text))
        references = {i: _reference_labels(text, atoms) for i, text in targets.items()}
        vocabulary = frozenset[str]().union(*references.values())
        answers = {i: _labels(text, vocabulary) for text, i in self._texts.items()}
        return [(answers[answer], references[reference]) for answer, reference in numbers.tolist()]


@dataclass(frozen=True)
class _Text:
    """Text of an answer."""

    content: str
    options: tuple[str, ...]
    """Texts of the options that the question lists, in the order of their letters."""
    is_class: bool
    """True: the answer is one class, which may contain commas."""


@dataclass(frozen=True)
class _Table:
    """Labels of all samples as pairs of the number of a sample and of a label, [E, 2]."""

    labels: list[str]
    hits: ClassCounts
    wrong: ClassCounts
    missed: ClassCounts
    own: np.ndarray
    """F1 of each sample, [N]."""
    failed: int


def _table_of(pairs: Sequence[tuple[Labels | None, Labels]], labels: list[str]) -> _Table:
    """Return the labels of pairs of an answer and its reference."""
    numbers = {label: number for number, label in enumerate(labels)}
    parts: tuple[list[tuple[int, int]], ...] = ([], [], [])
    own = np.zeros(len(pairs))
    for sample, (answer, reference) in enumerate(pairs):
        predicted = answer or frozenset[str]()
        sets = (predicted & reference, predicted - reference, reference - predicted)
        for part, names in zip(parts, sets, strict=True):
            part.extend((sample, numbers.get(name, len(labels))) for name in sorted(names))
        if answer is None and not reference:
            parts[1].append((sample, len(labels)))
        size = len(predicted) + len(reference)
        own[sample] = 0.0 if answer is None else 2 * len(sets[0]) / size if size else 1.0
    count = len(labels) + 1  # the last one is the wrong label of failed answers
    entries = (np.array(part, int).reshape(-1, 2) for part in parts)
    hits, wrong, missed = (ClassCounts(part[:, 0], part[:, 1], count) for part in entries)
    return _Table(labels, hits, wrong, missed, own, sum(answer is None for answer, _ in pairs))


def _f1(hits: np.ndarray, wrong: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """Return 2 tp / (2 tp + fp + fn); 1 if there is neither a label nor an answer."""
    size = 2 * hits + wrong + missed
    return np.where(size > 0, 2 * hits / np.where(size > 0, size, 1), 1.0)


def _reference_labels(text: _Text, atoms: Labels) -> Labels:
    """Return the labels of a reference. `atoms` are labels that are known from others, which may contain commas."""
    chosen = _chosen(text)
    if chosen is not None:
        return chosen
    whole = normalize(text.content)
    if whole in NONE_WORDS or not whole:
        return frozenset()
    return frozenset({whole}) if text.is_class or whole in atoms else frozenset(split_labels(text.content))


def _labels(text: _Text, vocabulary: Labels) -> Labels | None:
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
