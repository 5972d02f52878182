"""Metrics of words against the libraries and the published examples that define them."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from scores import score

from mllm.errors import ConfigError
from mllm.metrics.base import StreamingMetric
from mllm.metrics.cider import CIDEr
from mllm.metrics.overlap import BLEU, METEOR, ChrF, ExactMatch, RougeL, TokenF1, meteor_score

REFERENCES = [
    "Heart size is normal without pleural effusion.",
    "No focal consolidation.",
    "Stable cardiomegaly.",
    "Small left-sided effusion and adjacent atelectasis are seen.",
    "The lungs are clear bilaterally.\nNo pneumothorax.",
]
ANSWERS = [
    "The heart is normal in size and there is no effusion.",
    "No focal consolidation.",
    "",
    "There is a small left pleural effusion with adjacent atelectasis",
    "lungs clear",
]


def test_bleu_and_chrf_of_the_split_are_those_of_sacrebleu() -> None:
    texts = ANSWERS, [[" ".join(text.split()) for text in REFERENCES]]
    figures = score(BLEU, ANSWERS, REFERENCES)
    for order in (1, 2, 3, 4):
        expected = sacrebleu.BLEU(max_ngram_order=order).corpus_score(*texts).score
        assert figures[f"bleu{order}"] == pytest.approx(expected, abs=1e-9)
    assert (figures["failed"], figures["samples"]) == (1, 5)
    assert score(ChrF, ANSWERS, REFERENCES)["chrf"] == pytest.approx(sacrebleu.corpus_chrf(*texts).score, abs=1e-9)


def test_bleu_of_a_published_example() -> None:
    """Papineni et al. 2002, example 2: the clipped precision of 1-grams of seven times `the` is 2/7."""
    assert score(BLEU, ["the the the the the the the"], ["the cat is on the mat"])["bleu1"] == pytest.approx(200 / 7)


def test_rouge_l_is_the_mean_of_rouge_score() -> None:
    """The example of Lin 2004 (section 3.1): F1 of `police kill the gunman` is 3/4: 3 words in common."""
    assert score(RougeL, ["police kill the gunman"], ["police killed the gunman"])["rouge_l"] == pytest.approx(3 / 4)
    expected = [RougeScorer(["rougeL"]).score(*pair)["rougeL"][2] for pair in zip(REFERENCES, ANSWERS, strict=True)]
    assert score(RougeL, ANSWERS, REFERENCES)["rouge_l"] == pytest.approx(np.mean(expected))


def test_cider_is_that_of_pycocoevalcap_on_tokenized_reports() -> None:
    """The words are those of Stanford's tokenizer in pycocoevalcap, recorded from PTBTokenizer."""
    from pycocoevalcap.cider.cider import Cider

    references = [
        "heart size is normal without pleural effusion",
        "no focal consolidation",
        "stable cardiomegaly",
        "small left-sided effusion and adjacent atelectasis are seen",
        "the lungs are clear bilaterally no pneumothorax",
    ]
    answers = [text.lower().rstrip(".") for text in ANSWERS]
    keyed = [{i: [text] for i, text in enumerate(texts)} for texts in (references, answers)]
    assert score(CIDEr, ANSWERS, REFERENCES)["cider"] == pytest.approx(Cider().compute_score(*keyed)[0], abs=1e-9)


METEOR_STATISTICS = """
11 7 7 1 4 4 1 1 0 0 0 0 0 0 0 0 0 0 0 0 4 5 5
3 3 1 1 2 2 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 3 3
0 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
10 9 4 2 5 5 0 0 0 0 0 0 0 0 0 0 0 1 1 1 4 6 7
1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
2 7 0 3 2 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 2 2 2
"""
"""Statistics that meteor-1.5.jar of pycocoevalcap gives for the pairs above and `x` against `y`."""


def test_cider_of_references_without_a_word_is_zero() -> None:
    figures = score(CIDEr, ["", "clear lungs"], ["-", "..."])
    assert (figures["cider"], figures["failed"], figures["samples"]) == (0, 1, 2)


def test_meteor_of_statistics_is_that_of_its_own_program() -> None:
    """The expected values are those that the program returned for these statistics and for their sum."""
    rows = np.array([line.split() for line in METEOR_STATISTICS.split("\n") if line], float)
    each = [0.29160265798093216, 1.0, 0.0, 0.34118876854932556, 0.0, 0.17582417582417584]
    assert meteor_score(rows) == pytest.approx(each, abs=1e-9)
    assert meteor_score(rows.sum(axis=0, keepdims=True)) == pytest.approx([0.2795786988014224], abs=1e-9)


def test_meteor_without_java_and_metrics_without_their_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match="needs Java, which is not installed: run apt-get install default-jre"):
        METEOR.require()

    class Absent(StreamingMetric):
        packages = ("no_such_package",)

    with pytest.raises(ConfigError, match=r"no_such_package: run pip install -e '.\[evaluation\]'"):
        Absent.require()


def test_exact_match_and_token_f1_are_those_of_squad() -> None:
    """F1 by hand from the definition of arXiv:1606.05250: words in common 2, 0, 2, 0 and 1, as a multiset."""
    answers = ["The left lung.", "pneumonia", "a small effusion", "", "yes yes no"]
    references = ["left lung", "Pneumothorax", "small pleural effusion", "none", "yes"]
    assert score(ExactMatch, answers, references) == {"exact_match": 1 / 5, "failed": 1, "samples": 5}
    figures = score(TokenF1, answers, references)
    assert figures["token_f1"] == pytest.approx((1 + 0 + 4 / 5 + 0 + 2 / 4) / 5)
    assert figures["token_recall"] == pytest.approx((1 + 0 + 2 / 3 + 0 + 1) / 5)
