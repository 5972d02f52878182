"""Figures about short answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from mllm.registry import METRICS


@METRICS.register_module(name="accuracy")
def accuracy(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The share of answers that equal their reference, apart from case, spaces and closing punctuation.

    `chance` is that of guessing evenly among the references' distinct answers. An answer that merely contains its
    reference is wrong.
    """
    assert len(predictions) == len(references)
    if not references:
        return {"accuracy": float("nan"), "chance": float("nan"), "samples": 0}
    wanted = [normalized(reference) for reference in references]
    right = sum(normalized(answer) == reference for answer, reference in zip(predictions, wanted, strict=True))
    return {"accuracy": right / len(wanted), "chance": 1 / len(set(wanted)), "samples": len(wanted)}


def normalized(answer: str) -> str:
    """An answer as it is compared: one kind of letters and spaces, no punctuation at its end."""
    text = unicodedata.normalize("NFKC", answer).casefold()
    return " ".join(text.split()).rstrip(".!,;: ")
