"""Figures about short answers."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

from mllm.registry import METRICS
from mllm.structures import Answer

STATED = re.compile(r"(?:(?:So t|T|t)he answer is|Answer:) (.+)")
"""How a longer answer states its result, as in Shikra's evaluation of GQA and POPE."""
CLAUSE_END = re.compile(r"[.,;:!?\n]+")
"""What ends a clause, of which a choice must be the whole to be read."""


@METRICS.register_module(name="accuracy")
def accuracy(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """The share of answers that equal their reference, apart from case, spaces and closing punctuation.

    `chance` is that of guessing evenly among the references' distinct answers. An answer that merely contains its
    reference is wrong.
    """
    assert len(predictions) == len(references)
    if not references:
        return {"accuracy": float("nan"), "chance": float("nan"), "samples": 0}
    wanted = [normalized(reference.text) for reference in references]
    right = sum(normalized(answer.text) == reference for answer, reference in zip(predictions, wanted, strict=True))
    return {"accuracy": right / len(wanted), "chance": 1 / len(set(wanted)), "samples": len(wanted)}


@METRICS.register_module(name="short_answer")
def short_answer(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """The share of answers whose stated result (`The answer is yes.`, `Answer: yes`) equals that of the reference.

    A prediction that states no result, or several different ones, is counted in `failed` and is wrong. A reference
    that states none is itself the result. Where all of them are yes or no, `precision`, `recall` and `f1` of yes and
    `yes_share`, the share of yes among the predictions, are given too, as POPE has them (arXiv:2305.10355).
    """
    assert len(predictions) == len(references)
    if not references:
        return {"accuracy": float("nan"), "failed": 0, "samples": 0}
    said = [stated(answer.text) for answer in predictions]
    wanted = [stated(reference.text) or normalized(reference.text) for reference in references]
    pairs = list(zip(said, wanted, strict=True))
    figures: dict[str, float] = {
        "accuracy": sum(one == other for one, other in pairs) / len(pairs),
        "failed": sum(one is None for one in said),
        "samples": len(pairs),
    }
    if set(wanted) <= {"yes", "no"}:
        both = sum(pair == ("yes", "yes") for pair in pairs)
        precision, recall = _share(both, said.count("yes")), _share(both, wanted.count("yes"))
        figures |= {"precision": precision, "recall": recall, "f1": _share(2 * precision * recall, precision + recall)}
        figures["yes_share"] = said.count("yes") / len(said)
    return figures


@METRICS.register_module(name="choice")
def choice(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """How often one of a few answers (yes, no, maybe) is chosen rightly; the choices are the distinct references.

    An answer that `chosen` cannot read as one choice is counted in `unreadable` and is wrong. `majority` is the
    accuracy of always giving the most frequent reference; `macro_f1` is the mean over the choices of
    2 tp / (2 tp + fp + fn), as PubMedQA has it (arXiv:1909.06146).
    """
    assert len(predictions) == len(references)
    if not references:
        nan = float("nan")
        return {"accuracy": nan, "majority": nan, "macro_f1": nan, "unreadable": 0, "samples": 0}
    wanted = [normalized(reference.text) for reference in references]
    choices = Counter(wanted)
    said = [chosen(answer.text, choices) for answer in predictions]
    right = Counter(one for one, other in zip(said, wanted, strict=True) if one == other)
    scores = [2 * right[one] / (said.count(one) + count) for one, count in choices.items()]
    return {
        "accuracy": right.total() / len(wanted),
        "majority": max(choices.values()) / len(wanted),
        "macro_f1": sum(scores) / len(scores),
        "unreadable": said.count(None),
        "samples": len(wanted),
    }


def chosen(text: str, choices: Collection[str]) -> str | None:
    """The one of the normalized `choices` that a text names; None where it names none or several.

    It is named where it is the whole text, or the whole of a clause (`Yes, because ...`), or stated as a result (`The
    answer is yes`). A word inside a clause names nothing: neither `No one knows` nor `not yes` is a choice.
    """
    whole = normalized(text)
    if whole in choices:
        return whole
    clauses = {normalized(clause) for clause in CLAUSE_END.split(text)}
    named = (clauses | {normalized(result) for result in STATED.findall(text)}) & set(choices)
    return named.pop() if len(named) == 1 else None


def stated(text: str) -> str | None:
    """The one result that a text states, as `normalized` gives it; None where it states none or different ones."""
    found = {normalized(result) for result in STATED.findall(text)}
    return found.pop() if len(found) == 1 else None


def normalized(answer: str) -> str:
    """An answer as it is compared: one kind of letters and spaces, no punctuation at its end."""
    text = unicodedata.normalize("NFKC", answer).casefold()
    return " ".join(text.split()).rstrip(".!,;: ")


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
