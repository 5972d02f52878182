"""CIDEr-D, computed by pycocoevalcap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mllm.metrics.base import REPORT, PartedMetric, computed_once, reads
from mllm.metrics.overlap import caption
from mllm.metrics.packages import optional
from mllm.metrics.parts import ColumnSums, KeyCounts, mapped
from mllm.registry import METRICS
from mllm.structures import Answer

BLOCK = 500
"""Number of samples whose n-grams are in memory together."""
Pair = tuple[str, str]
"""Words of an answer and of its reference, separated by spaces."""
Counts = Mapping[tuple[str, ...], int]
"""n-gram -> its number in a text."""


class _References(list[Any]):
    """n-grams of the references of some samples, with the length of all: pycocoevalcap weights n-grams by it."""

    def __init__(self, references: Iterable[Any], samples: int) -> None:
        super().__init__(references)
        self._samples = samples

    def __len__(self) -> int:
        return self._samples


@METRICS.register_module(name="cider")
@reads("text")
class CIDEr(PartedMetric):
    """Mean CIDEr-D of the samples, 0 to 10, by pycocoevalcap (Vedantam et al. 2015, arXiv:1411.5726).

    Words are lower-case, without punctuation. Stanford's tokenizer, which pycocoevalcap runs before in Java, also
    splits contractions. n-grams are weighted by the references of the whole split, also in the bootstrap.

    Figures: `cider`, `failed` (empty answers) and `samples`.
    """

    tasks = frozenset({REPORT})
    packages = ("pycocoevalcap",)

    def __init__(self) -> None:
        super().__init__()
        self.failed = 0
        """Number of empty answers."""
        self.forget()

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the words of an answer and its reference."""
        pair = caption(prediction.text), caption(reference.text)
        self._texts.append(pair)
        self.failed += not pair[0]

    def pending(self) -> int:
        """Return the number of answers that are kept."""
        return len(self._texts)

    def kept(self) -> list[Pair]:
        """Return the words that are kept."""
        return list(self._texts)

    def forget(self) -> None:
        """Forget the words that are kept."""
        self._texts: list[Pair] = []

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, U] of the units."""
        scores, samples = self.sums()
        return {"cider": weights @ scores / (weights @ samples)}

    @computed_once
    def sums(self) -> list[np.ndarray]:
        """Return the sums of the scores and the number of samples by unit, [U] each."""
        columns, frequencies = ColumnSums(self.units, 2), self._frequencies()
        for units, texts in self.parts():
            blocks = (texts[start : start + BLOCK] for start in range(0, len(texts), BLOCK))
            scores = [score for block in blocks for score in self._scores(block, *frequencies)]
            columns.add(units, np.array(scores), np.ones(len(texts)))
        return columns.sums

    def _frequencies(self) -> list[np.ndarray]:
        """Return the hashes of the n-grams that are in several references, sorted, and the numbers of references.

        pycocoevalcap weights an n-gram that is in one reference as one that is in none.
        """
        counts = KeyCounts(1)
        for _, texts in self.parts():
            for start in range(0, len(texts), BLOCK):
                keys = [_key(ngram) for _, reference in texts[start : start + BLOCK] for ngram in _ngrams(reference)]
                counts.add(np.array(keys, np.uint64), np.ones((len(keys), 1)))
        several = ((keys[sums[:, 0] > 1], sums[sums[:, 0] > 1, 0]) for keys, sums in counts)
        return mapped(several, (np.uint64, np.int64))

    def _scores(self, texts: Sequence[Pair], hashes: np.ndarray, frequencies: np.ndarray) -> Iterator[float]:
        """Yield the scores of some samples."""
        scorer = optional("pycocoevalcap.cider.cider_scorer").CiderScorer()
        pairs = [tuple(map(_ngrams, pair)) for pair in texts]
        scorer.ctest = [answer for answer, _ in pairs]
        scorer.crefs = _References(([reference] for _, reference in pairs), len(self))
        ngrams = list({ngram for pair in pairs for counts in pair for ngram in counts})
        keys = np.array([_key(ngram) for ngram in ngrams], np.uint64)
        places = np.searchsorted(hashes, keys)
        inside = np.flatnonzero(places < len(hashes))
        found = inside[hashes[places[inside]] == keys[inside]]
        scorer.document_frequency = defaultdict(float)
        for place, count in zip(found.tolist(), frequencies[places[found]].tolist(), strict=True):
            scorer.document_frequency[ngrams[place]] = count
        yield from map(float, scorer.compute_cider())

    def counts(self) -> dict[str, float]:
        """Return the number of empty answers and of samples."""
        return {"failed": self.failed, "samples": len(self)}


def _ngrams(text: str) -> Counts:
    counts: Counts = optional("pycocoevalcap.cider.cider_scorer").precook(text)
    return counts


def _key(ngram: tuple[str, ...]) -> int:
    """Return a number of 64 bits for an n-gram, the same one in this process."""
    return hash(ngram) & 0xFFFFFFFFFFFFFFFF
