"""Figures about short answers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from mllm.registry import METRICS
from mllm.structures import Answer

STATED = re.compile(r"(?:(?:So t|T|t)he answer is|Answer:) (.+)")
"""How a longer answer states its result, as in Shikra's evaluation of GQA and POPE."""


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
