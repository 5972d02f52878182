"""Metrics of short answers."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

from mllm.metrics.base import reads
from mllm.registry import METRICS
from mllm.structures import Answer

STATED = re.compile(r"(?:(?:So t|T|t)he answer is|Answer:) (.+)")
"""Statement of the result in a longer answer, as in Shikra's evaluation of GQA and POPE."""
CLAUSE_END = re.compile(r"[.,;:!?\n]+")
"""End of a clause."""


@METRICS.register_module(name="accuracy")
@reads("text")
def accuracy(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """Compute the fraction of answers that equal their reference, except for case, spaces and final punctuation.

    An answer that contains its reference and more text is wrong.

    Returns:
        `accuracy`, `majority_class` (accuracy of always giving the most frequent reference), `chance` (accuracy of
        guessing uniformly among the distinct references) and `samples`.
    """
    assert len(predictions) == len(references)
    if not references:
        nan = float("nan")
        return {"accuracy": nan, "majority_class": nan, "chance": nan, "samples": 0}
    targets = [normalize(reference.text) for reference in references]
    correct = sum(normalize(answer.text) == target for answer, target in zip(predictions, targets, strict=True))
    counts = Counter(targets)
    return {
        "accuracy": correct / len(targets),
        "majority_class": max(counts.values()) / len(targets),
        "chance": 1 / len(counts),
        "samples": len(targets),
    }


@METRICS.register_module(name="short_answer")
@reads("text")
def short_answer(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """Compute the fraction of answers whose stated result (`The answer is yes.`, `Answer: yes`) is correct.

    A prediction that states several different results is wrong. A prediction that states none is a result if its whole
    text is one of the references, or yes or no where all references are yes or no. A reference without a stated result
    is the result itself.

    Returns:
        `accuracy`, `majority_class` and `chance` (as in `accuracy`), `failed` (predictions without exactly one result)
        and `samples`. If all references are yes or no, also `precision`, `recall` and `f1` of yes and `yes_share`, the
        fraction of predictions that are yes, as in POPE
        (arXiv:2305.10355).
    """
    assert len(predictions) == len(references)
    if not references:
        nan = float("nan")
        return {"accuracy": nan, "majority_class": nan, "chance": nan, "failed": 0, "samples": 0}
    targets = [stated_result(reference.text) or normalize(reference.text) for reference in references]
    counts = Counter(targets)
    choices = {"yes", "no"} if counts.keys() <= {"yes", "no"} else counts.keys()
    results = [_result(answer.text, choices) for answer in predictions]
    pairs = list(zip(results, targets, strict=True))
    figures: dict[str, float] = {
        "accuracy": sum(result == target for result, target in pairs) / len(pairs),
        "majority_class": max(counts.values()) / len(targets),
        "chance": 1 / len(counts),
        "failed": sum(result is None for result in results),
        "samples": len(pairs),
    }
    if set(targets) <= {"yes", "no"}:
        true_positives = sum(pair == ("yes", "yes") for pair in pairs)
        precision, recall = (_ratio(true_positives, answers.count("yes")) for answers in (results, targets))
        figures |= {"precision": precision, "recall": recall, "f1": _ratio(2 * precision * recall, precision + recall)}
        figures["yes_share"] = results.count("yes") / len(results)
    return figures


@METRICS.register_module(name="choice")
@reads("choices")
def choice(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """Compute accuracy and F1 of a choice among a few answers (yes, no, maybe): the distinct references.

    Returns:
        `accuracy`, `majority_class` and `chance` (as in `accuracy`), `macro_f1` (mean over the choices of
        2 tp / (2 tp + fp + fn), as in PubMedQA, arXiv:1909.06146), `unreadable` (answers in which `parse_choice` finds
        no single choice; they are wrong) and `samples`.
    """
    assert len(predictions) == len(references)
    if not references:
        nan = float("nan")
        return {"accuracy": nan, "majority_class": nan, "chance": nan, "macro_f1": nan, "unreadable": 0, "samples": 0}
    targets = [normalize(reference.text) for reference in references]
    choices = Counter(targets)
    parsed = [parse_choice(answer.text, choices) for answer in predictions]
    correct = Counter(choice for choice, target in zip(parsed, targets, strict=True) if choice == target)
    scores = [2 * correct[name] / (parsed.count(name) + count) for name, count in choices.items()]
    return {
        "accuracy": correct.total() / len(targets),
        "majority_class": max(choices.values()) / len(targets),
        "chance": 1 / len(choices),
        "macro_f1": sum(scores) / len(scores),
        "unreadable": parsed.count(None),
        "samples": len(targets),
    }


def parse_choice(text: str, choices: Collection[str]) -> str | None:
    """Return the choice that a text states; None for no choice or several.

    A choice is the whole text, a whole clause (`Yes, because ...`) or a stated result (`The answer is yes`). A word
    within a clause is not a choice: neither `No one knows` nor `not yes`.

    Args:
        text: The answer.
        choices: Possible choices, normalized.
    """
    normalized = normalize(text)
    if normalized in choices:
        return normalized
    clauses = {normalize(clause) for clause in CLAUSE_END.split(text)}
    stated = (clauses | {normalize(result) for result in STATED.findall(text)}) & set(choices)
    return stated.pop() if len(stated) == 1 else None


def stated_result(text: str) -> str | None:
    """Return the normalized result that a text states; None for no result or several different ones."""
    results = {normalize(result) for result in STATED.findall(text)}
    return results.pop() if len(results) == 1 else None


def _result(text: str, choices: Collection[str]) -> str | None:
    """Return the stated result of a prediction, or its whole text if it states none and the text is in `choices`."""
    if STATED.search(text):
        return stated_result(text)
    normalized = normalize(text)
    return normalized if normalized in choices else None


def normalize(answer: str) -> str:
    """Normalize an answer for comparison: NFKC, case-folded, single spaces, no final punctuation."""
    text = unicodedata.normalize("NFKC", answer).casefold()
    return " ".join(text.split()).rstrip(".!,;: ")


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
