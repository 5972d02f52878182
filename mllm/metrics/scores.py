"""Base of metrics of the probabilities of options.

The score of an option is its probability among the options of the question, from their likelihoods as answers
(`scoring="options"`). Generated answers have no scores: these metrics need them.
"""

from __future__ import annotations

import numpy as np

from mllm.errors import ConfigError
from mllm.metrics.base import CLASSIFICATION, PartedMetric
from mllm.metrics.parts import KeyCounts, hash_of
from mllm.parsing import normalize, parse_option
from mllm.structures import Answer


class ScoreMetric(PartedMetric):
    """Base of metrics of the probabilities of options. A class is the normalized text of an option."""

    tasks = frozenset({CLASSIFICATION})
    needs_scores = True

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[str, int] = {}
        self._known = KeyCounts(1)
        """Hashes of the classes of answers that are not kept."""
        self._read = 0
        """Number of samples that were read."""

    def read(self, prediction: Answer, reference: Answer) -> tuple[list[tuple[int, float]], int]:
        """Return the class and probability of each option of a sample, and the class of the reference.

        The number of a class is a position in `names`.

        Raises:
            ConfigError: The answer was generated, so it has no probabilities.
        """
        if not prediction.scores:
            raise ConfigError(
                "auroc, auprc, sensitivity_at_specificity, ece and brier need the probabilities of options: set "
                "data_args.gen_kwargs.scoring='options'"
            )
        self._read += 1
        letter = parse_option(reference.text, reference.options) if reference.options else None
        target = self._number(normalize(reference.text if letter is None else reference.options[letter]))
        return [(self._number(normalize(option)), score) for option, score in prediction.scores.items()], target

    def names(self) -> list[str]:
        """Return the classes of the answers that are kept."""
        return list(self._numbers)

    def forget(self) -> None:
        """Forget the answers that are kept."""
        self._count_names()
        self._numbers = {}

    def counts(self) -> dict[str, float]:
        """Return the number of classes and of samples."""
        self._count_names()
        return {"classes": sum(len(keys) for keys, _ in self._known), "samples": self._read}

    def _number(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    def _count_names(self) -> None:
        hashes = np.fromiter(map(hash_of, self._numbers), np.uint64, len(self._numbers))
        self._known.add(hashes, np.ones((len(hashes), 1)))
