"""Metrics of words that an answer shares with its reference, by sacrebleu, rouge-score and pycocoevalcap."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mllm.errors import ConfigError
from mllm.metrics.base import REPORT, SumMetric, reads
from mllm.metrics.packages import optional
from mllm.registry import METRICS
from mllm.structures import Answer

CHUNKS = 20
"""Column of the number of chunks in the statistics of METEOR."""
_WORD = re.compile(r"[^\W_]+(?:['./,-][^\W_]+)*")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")


def one_line(text: str) -> str:
    """Return a text with single spaces, on one line."""
    return " ".join(text.split())


class TextMetric(SumMetric):
    """Base of metrics of long texts. An empty answer shares nothing with its reference; none is left out."""

    tasks = frozenset({REPORT})


@METRICS.register_module(name="bleu")
@reads("text")
class BLEU(TextMetric):
    """BLEU-1 to BLEU-4 of the whole split, 0 to 100, by sacrebleu: tokenizer 13a, exponential smoothing, with case.

    BLEU-n is the geometric mean of the precisions of 1-grams to n-grams times the brevity penalty (Papineni et al.
    2002, doi:10.3115/1073083.1073135).

    Figures: `bleu1`, `bleu2`, `bleu3`, `bleu4`, `failed` (empty answers) and `samples`.
    """

    packages = ("sacrebleu",)
    columns = ("words", "reference_words", *(f"{kind}{n}" for kind in ("correct", "total") for n in (1, 2, 3, 4)))

    def __init__(self) -> None:
        super().__init__()
        self._bleu = optional("sacrebleu.metrics").BLEU()

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float]:
        """Return the lengths in words and the numbers of n-grams."""
        self.failed += not prediction.text.strip()
        score = self._bleu.corpus_score([one_line(prediction.text)], [[one_line(reference.text)]])
        return score.sys_len, score.ref_len, *score.counts, *score.totals

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return BLEU-1 to BLEU-4."""
        rows = np.stack([sums[column] for column in self.columns], axis=1).round().astype(int).tolist()
        scores = [[self._score(row, order) for order in (1, 2, 3, 4)] for row in rows]
        return {f"bleu{n + 1}": np.array(column) for n, column in enumerate(zip(*scores, strict=True))}

    def _score(self, row: list[int], order: int) -> float:
        correct, total = row[2 : 2 + order], row[6 : 6 + order]
        score = self._bleu.compute_bleu(correct, total, row[0], row[1], smooth_method="exp", max_ngram_order=order)
        return float(score.score)


@METRICS.register_module(name="chrf")
@reads("text")
class ChrF(TextMetric):
    """The chrF2 of the whole split, 0 to 100, by sacrebleu: F-score of n-grams of 1 to 6 characters (Popovic 2015).

    Figures: `chrf`, `failed` (empty answers) and `samples`.
    """

    packages = ("sacrebleu",)
    columns = tuple(f"{kind}{n}" for n in range(1, 7) for kind in ("answer", "reference", "match"))

    def __init__(self) -> None:
        super().__init__()
        self._chrf = optional("sacrebleu.metrics").CHRF()

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float]:
        """Return the numbers of n-grams of characters."""
        self.failed += not prediction.text.strip()
        texts = [one_line(prediction.text)], [[one_line(reference.text)]]
        return list(self._chrf._extract_corpus_statistics(*texts)[0])

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return chrF."""
        rows = np.stack([sums[column] for column in self.columns], axis=1)
        return {"chrf": np.array([self._chrf._compute_f_score(row.tolist()) for row in rows])}


@METRICS.register_module(name="rouge_l")
@reads("text")
class RougeL(TextMetric):
    """Mean ROUGE-L of the samples, 0 to 1, by rouge-score without stemming (Lin 2004): F1 of the longest common words.

    Figures: `rouge_l`, `failed` (empty answers) and `samples`.
    """

    packages = ("rouge_score",)
    columns = ("score", "samples")

    def __init__(self) -> None:
        super().__init__()
        # Without a tokenizer it logs by absl, which then prints all records of this process twice.
        tokenizer = optional("rouge_score.tokenizers").DefaultTokenizer(use_stemmer=False)
        self._scorer = optional("rouge_score.rouge_scorer").RougeScorer(["rougeL"], tokenizer=tokenizer)

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float]:
        """Return ROUGE-L of a sample."""
        self.failed += not prediction.text.strip()
        return self._scorer.score(reference.text, prediction.text)["rougeL"].fmeasure, 1

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the mean."""
        return {"rouge_l": sums["score"] / sums["samples"]}


@METRICS.register_module(name="meteor")
@reads("text")
class METEOR(TextMetric):
    """METEOR 1.5 of the whole split, 0 to 1, by pycocoevalcap for English (Denkowski and Lavie 2014). Needs Java.

    Texts are tokenized as for `cider`. METEOR's own program counts the matches of a sample (exact, stem, synonym,
    paraphrase); the score of the sums is computed with its parameters for English.

    Figures: `meteor`, `failed` (empty answers) and `samples`.
    """

    packages = ("pycocoevalcap",)
    columns = tuple(f"value{n}" for n in range(23))

    def __init__(self) -> None:
        super().__init__()
        self.require()
        self._program: Any = None

    @classmethod
    def require(cls) -> None:
        """Raise `ConfigError` without pycocoevalcap or Java."""
        super().require()
        if shutil.which("java") is None:
            raise ConfigError(
                "metric 'meteor' needs Java, which is not installed: run apt-get install default-jre-headless, or "
                "install a Java runtime in another way"
            )

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float]:
        """Return the statistics of METEOR."""
        if self._program is None:
            self._program = optional("pycocoevalcap.meteor.meteor").Meteor()
        self.failed += not prediction.text.strip()
        text = self._program._stat(caption(prediction.text), [caption(reference.text)])
        values = [float(value) for value in text.split()]
        assert len(values) == len(self.columns), f"METEOR returned {text!r}"
        if values[CHUNKS] == 1 and values[:2] == values[-2:]:
            values[CHUNKS] = 0  # METEOR's sums leave out the one chunk of an answer that equals its reference
        return values

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return METEOR."""
        return {"meteor": meteor_score(np.stack([sums[column] for column in self.columns], axis=1))}


def meteor_score(values: np.ndarray) -> np.ndarray:
    """Return METEOR 1.5 for English of sums [R, 23] of its statistics (Denkowski and Lavie 2014, section 2).

    The statistics are the numbers of words and of function words of answer and reference, for each of four kinds of
    matches the matched content words and function words of both, chunks, and matched words of both.
    """
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    kinds = np.array([1.0, 0.6, 0.8, 0.6])
    lengths, functions = values[:, 0:2], values[:, 2:4]
    matches = values[:, 4:20].reshape(-1, 4, 2, 2)  # kind, content or function words, answer or reference
    with np.errstate(divide="ignore", invalid="ignore"):
        weighted = delta * matches[:, :, 0] + (1 - delta) * matches[:, :, 1]
        sides = np.einsum("k,rks->rs", kinds, weighted) / (delta * (lengths - functions) + (1 - delta) * functions)
        mean = 1 / ((1 - alpha) / sides[:, 0] + alpha / sides[:, 1])
        fragments = values[:, CHUNKS] / values[:, 21:23].mean(axis=1)
        score = mean * (1 - gamma * fragments**beta)
    return np.where(np.isfinite(score), score, 0.0)


def caption(text: str) -> str:
    """Return the lower-case words of a text without punctuation, separated by spaces."""
    return " ".join(_WORD.findall(text.lower()))


@METRICS.register_module(name="exact_match")
@reads("text")
class ExactMatch(SumMetric):
    """Fraction of answers that equal their reference, normalized as in SQuAD (arXiv:1606.05250).

    Case, punctuation and the words a, an and the do not count.

    Figures: `exact_match`, `failed` (empty answers) and `samples`.
    """

    columns = ("correct", "samples")

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float]:
        """Return 1 for an equal answer."""
        self.failed += not prediction.text.strip()
        return squad_words(prediction.text) == squad_words(reference.text), 1

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the mean."""
        return {"exact_match": sums["correct"] / sums["samples"]}


@METRICS.register_module(name="token_f1")
@reads("text")
class TokenF1(SumMetric):
    """Mean F1 and recall of the words of an answer, normalized as in SQuAD (arXiv:1606.05250).

    Figures: `token_f1`, `token_recall`, `failed` (empty answers) and `samples`.
    """

    columns = ("f1", "recall", "samples")

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float]:
        """Return F1 and recall of a sample."""
        self.failed += not prediction.text.strip()
        words, true = squad_words(prediction.text), squad_words(reference.text)
        if not words or not true:
            return words == true, words == true, 1
        common = (Counter(words) & Counter(true)).total()
        return 2 * common / (len(words) + len(true)), common / len(true), 1

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the means."""
        return {"token_f1": sums["f1"] / sums["samples"], "token_recall": sums["recall"] / sums["samples"]}


def squad_words(text: str) -> list[str]:
    """Return the words of a text as SQuAD normalizes it: lower case, without punctuation of ASCII and articles."""
    return _ARTICLE.sub(" ", _PUNCTUATION.sub("", text.lower())).split()
