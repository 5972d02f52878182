"""Metrics of the ranking of samples by the probability of an option: AUROC, AUPRC, sensitivity at a specificity."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mllm.metrics.base import computed_once, reads
from mllm.metrics.parts import KeyCounts, PartFile, hash_of
from mllm.metrics.scores import ScoreMetric
from mllm.registry import METRICS
from mllm.structures import Answer

SPECIFICITIES = (0.9, 0.95)
SORTED = 1_000_000
"""Number of probabilities that are sorted together, unless a class has more; they take about 40 bytes each."""
BLOCK = 65_536
"""Number of probabilities of a block of a ranking."""
CURVE = 5000
"""Number of cells in each direction, in which a curve has one point."""
_CELLS = 262_144
"""Number of weights of a block that is computed at once."""

Points = Iterable[tuple[np.ndarray, np.ndarray]]
"""Blocks of the weights of true and of false positives at thresholds, [T, R] each; see `Ranking.points`."""


@dataclass(frozen=True)
class RankPart:
    """Probabilities of the options of some answers, [E] each."""

    answers: np.ndarray
    """Position of the answer of each option."""
    classes: np.ndarray
    """Number of the class of each option, a position in `hashes`."""
    scores: np.ndarray
    """Probability of each option."""
    is_target: np.ndarray
    """True for an option that is the reference."""
    names: list[str]
    """Names of the classes."""

    @property
    def hashes(self) -> np.ndarray:
        """Return a key of each class, which is the same in each part."""
        return np.fromiter(map(hash_of, self.names), np.uint64, len(self.names))


@dataclass(frozen=True)
class Ranking:
    """Samples in the order of their probabilities of a class, the most probable one first."""

    name: str
    """Name of the class."""
    targets: int
    """Number of samples whose reference is the class."""
    others: int
    """Number of samples whose reference is another class."""
    blocks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
    """For each sample [E], in blocks: its unit, whether its probability is larger than the next one, and whether its
    reference is the class."""

    def points(self, weights: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the weights of true and of false positives at each threshold, [T, R] each, for weights [R, U] of units.

        Equal probabilities are one threshold. The first row of a block is the last one of the block before, and 0 in
        the first block.
        """
        by_unit = np.ascontiguousarray(weights.T)
        step = max(1, _CELLS // len(weights))
        true, false = (np.zeros((1, len(weights))) for _ in range(2))  # of the samples before
        last = true, false  # at the last threshold
        for block in self.blocks:
            for start in range(0, len(block[0]), step):
                units, is_end, is_target = (column[start : start + step] for column in block)
                drawn = by_unit[units]
                hits = np.cumsum(drawn * is_target[:, None], axis=0)
                misses = np.cumsum(drawn, axis=0, out=drawn) - hits
                hits, misses = hits + true, misses + false
                true, false = hits[-1:].copy(), misses[-1:].copy()
                at_ends = hits[is_end], misses[is_end]
                points = np.concatenate([last[0], at_ends[0]]), np.concatenate([last[1], at_ends[1]])
                yield points
                last = points[0][-1:].copy(), points[1][-1:].copy()

    def curve(self, units: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of true and of false positives at thresholds, [T] each, without points that lie together.

        Args:
            units: Number of units.
        """
        kept: list[np.ndarray] = []
        end = np.zeros((0, 2))
        for block in self.points(np.ones((1, units))):
            points = np.concatenate(block, axis=1)
            cells = np.floor(points * (CURVE / np.array([max(1, self.targets), max(1, self.others)])))
            kept.append(points[1:][(np.diff(cells, axis=0) != 0).any(axis=1)])
            end = points[-1:]
        points = np.concatenate([*kept, end])
        is_new = np.append(True, (np.diff(points, axis=0) != 0).any(axis=1))[: len(points)]
        return points[is_new, 0], points[is_new, 1]

    def totals(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights of the samples with the class and without it, [R] each."""
        true, false = (np.zeros(weights.shape[1]) for _ in range(2))
        for units, _, is_target in self.blocks:
            true += np.bincount(units, is_target, len(true))
            false += np.bincount(units, ~is_target, len(false))
        return weights @ true, weights @ false


class _Blocks:
    """Blocks of a ranking in a file."""

    def __init__(self, file: PartFile, numbers: range) -> None:
        self._file, self._numbers = file, numbers

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return map(self._file.part, self._numbers)


class RankMetric(ScoreMetric):
    """Base of metrics of the ranking of samples by the probability of a class, one class against the rest.

    With two classes the figure is that of yes, or of the second class in alphabetical order; with more, it is the mean
    over the classes that have samples with and without them (macro average). The probabilities of many answers are in
    a temporary file, and are sorted class by class.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the probabilities of the options of one sample."""
        options, target = self.read(prediction, reference)
        for option, score in options:
            self._answers.append(self._pending)
            self._options.append(option)
            self._scores.append(score)
            self._is_target.append(option == target)
        self._pending += 1

    def pending(self) -> int:
        """Return the number of answers that are kept."""
        return self._pending

    def kept(self) -> RankPart:
        """Return the probabilities that are kept."""
        answers, options = (np.array(part, np.int32) for part in (self._answers, self._options))
        scores, is_target = np.array(self._scores, float), np.array(self._is_target, bool)
        return RankPart(answers, options, scores, is_target, self.names())

    def forget(self) -> None:
        """Forget the probabilities that are kept."""
        super().forget()
        self._answers, self._options, self._is_target = array("i"), array("i"), array("b")
        self._scores = array("d")
        self._pending = 0

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, U] of the units."""
        sums: dict[str, np.ndarray] = {}
        known: dict[str, np.ndarray] = {}
        for ranking in self.rankings():
            for name, values in self.of_ranking(weights, ranking).items():
                is_known = np.isfinite(values)
                sums[name] = sums.get(name, 0.0) + np.where(is_known, values, 0)
                known[name] = known.get(name, 0) + is_known
        with np.errstate(invalid="ignore"):
            return {name: sums[name] / known[name] for name in sums}

    @computed_once
    def rankings(self) -> list[Ranking]:
        """Return the rankings of the classes that have samples with and without them.

        With two classes only the one of the figure, also if it has none of either.
        """
        counts = KeyCounts(2)
        for _, part in self.parts():
            sides = part.classes[part.is_target], part.classes[~part.is_target]
            counts.add(part.hashes, np.stack([np.bincount(side, minlength=len(part.names)) for side in sides], axis=1))
        chosen, others = list[tuple[int, list[int]]](), list[tuple[int, list[int]]]()
        count = 0
        for keys, sums in counts:
            count += len(keys)
            is_both = (sums > 0).all(axis=1)
            chosen += [*zip(keys[is_both].tolist(), sums[is_both].tolist(), strict=True)]
            present = sums.any(axis=1)
            others = others or [*zip(keys[present][:1].tolist(), sums[present][:1].tolist(), strict=True)]
        if count == 2:
            ends = sorted({name for _, part in self.parts() for name in part.names})
            key = hash_of("yes" if "yes" in ends else ends[-1])
            own = {k: v for keys, sums in counts for k, v in zip(keys.tolist(), sums.tolist(), strict=True)}[key]
            chosen, others = ([(key, own)] if any(own) else []), []
        return self._sorted(chosen or others)

    def _sorted(self, classes: Sequence[tuple[int, Sequence[int]]]) -> list[Ranking]:
        """Return the rankings of classes, given by keys with the numbers of samples with and without them."""
        file, rankings = PartFile(), list[Ranking]()
        start = 0
        while start < len(classes):
            size, end = sum(classes[start][1]), start + 1
            while end < len(classes) and size + sum(classes[end][1]) <= SORTED:
                size, end = size + sum(classes[end][1]), end + 1
            rankings += self._group(classes[start:end], file)
            start = end
        return sorted(rankings, key=lambda ranking: ranking.name)

    def _group(self, classes: Sequence[tuple[int, Sequence[int]]], file: PartFile) -> Iterator[Ranking]:
        """Yield the rankings of some classes, whose blocks are written to a file."""
        places = {key: place for place, (key, _) in enumerate(classes)}
        names: dict[int, str] = {}
        columns: list[tuple[np.ndarray, ...]] = []
        for units, part in self.parts():
            numbers = np.array([places.get(key, -1) for key in part.hashes.tolist()], np.int32)
            names |= {place: name for place, name in zip(numbers.tolist(), part.names, strict=True) if place >= 0}
            of_option = numbers[part.classes]
            used = of_option >= 0
            unit = units[part.answers[used]].astype(np.int32)
            columns.append((of_option[used], -part.scores[used], unit, part.is_target[used]))
        places_of, negative, units, is_target = (np.concatenate(column) for column in zip(*columns, strict=True))
        del columns
        order = np.argsort(negative, kind="stable") if len(classes) == 1 else np.lexsort((negative, places_of))
        ends = np.cumsum([sum(counts) for _, counts in classes])
        for place, (end, (_, counts)) in enumerate(zip(ends.tolist(), classes, strict=True)):
            first, (targets, others) = len(file), counts
            for start in range(end - targets - others, end, BLOCK):
                own = order[start : min(start + BLOCK, end)]
                following = negative[order[start + 1 : min(start + BLOCK, end - 1) + 1]]
                is_end = np.ones(len(own), bool)
                is_end[: len(following)] = negative[own[: len(following)]] != following
                file.append((units[own], is_end, is_target[own]))
            yield Ranking(names[place], targets, others, _Blocks(file, range(first, len(file))))

    @abstractmethod
    def of_ranking(self, weights: np.ndarray, ranking: Ranking) -> dict[str, np.ndarray]:
        """Return the figures [R] of one class for the weights [R, U] of the units."""


@METRICS.register_module(name="auroc")
@reads("text")
class AUROC(RankMetric):
    """Area under the ROC curve, as `roc_auc_score` of scikit-learn; see `RankMetric` for several classes.

    The score is the probability of the class among the options of the question.
    """

    def of_ranking(self, weights: np.ndarray, ranking: Ranking) -> dict[str, np.ndarray]:
        """Return the area by the trapezoidal rule."""
        area, positive, negative = (np.zeros(len(weights)) for _ in range(3))
        for true, false in ranking.points(weights):
            area += np.einsum("tr,tr->r", np.diff(false, axis=0), true[1:] + true[:-1]) / 2
            positive, negative = true[-1], false[-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            return {"auroc": area / (positive * negative)}


@METRICS.register_module(name="auprc")
@reads("text")
class AUPRC(RankMetric):
    """Average precision, as `average_precision_score` of scikit-learn; see `RankMetric` for several classes.

    `auprc_chance` is the fraction of the samples that have the class, the value of a random ranking.
    """

    intervals: ClassVar[tuple[str, ...]] = ("auprc",)

    def of_ranking(self, weights: np.ndarray, ranking: Ranking) -> dict[str, np.ndarray]:
        """Return the sum of precision times the increase of recall."""
        area, positive, negative = (np.zeros(len(weights)) for _ in range(3))
        with np.errstate(divide="ignore", invalid="ignore"):
            for true, false in ranking.points(weights):
                precision = true[1:] / (true[1:] + false[1:])
                area += (np.diff(true, axis=0) * np.where(np.isfinite(precision), precision, 0)).sum(axis=0)
                positive, negative = true[-1], false[-1]
            return {"auprc": area / positive, "auprc_chance": positive / (positive + negative)}


@METRICS.register_module(name="sensitivity_at_specificity")
@reads("text")
class SensitivityAtSpecificity(RankMetric):
    """Largest sensitivity at a specificity of at least 0.9 and 0.95, over the thresholds of the ROC curve."""

    def of_ranking(self, weights: np.ndarray, ranking: Ranking) -> dict[str, np.ndarray]:
        """Return the sensitivities."""
        positive, negative = ranking.totals(weights)
        best = {level: np.zeros(len(weights)) for level in SPECIFICITIES}
        with np.errstate(divide="ignore", invalid="ignore"):
            for true, false in ranking.points(weights):
                specificity = 1 - false / negative
                for level, values in best.items():
                    # Sensitivities increase from threshold to threshold.
                    np.maximum(values, np.where(specificity >= level - 1e-12, true, 0).max(axis=0), out=values)
            is_known = (positive > 0) & (negative > 0)
            return {
                f"sensitivity@specificity{level:g}": np.where(is_known, values / positive, np.nan)
                for level, values in best.items()
            }
