"""Gallery of predictions: cards with question, reference, prediction, score and pictures, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm.contents import UNITS
from mllm.engine.predictions import answers_of
from mllm.report.html_page import shortened
from mllm.report.run.pictures import Picture, Pictures
from mllm.report.run.scores import Score
from mllm.structures import BOX, IMAGE, POINT

MAX_CARDS = 1000
"""Maximum number of cards."""
WORST, OTHERS = 72, 48
"""Numbers of cards with pictures: the worst ones, and others that are evenly spaced."""
MAX_TEXT = 600
"""Maximum number of characters of a text on a card."""
EXAMPLES = 3
"""Number of examples of good, middle and bad detections each."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Card:
    """A prediction."""

    number: int
    """Number of the row in `predictions.jsonl`, from 1."""
    source: str
    patient: str
    task: str
    question: str
    reference: str
    prediction: str
    probability: str
    """Probabilities of the options. Empty: the answer was generated."""
    score: Score | None
    pictures: list[Picture]

    @property
    def verdict(self) -> str:
        """Return `right`, `wrong` or `unscored`."""
        return "unscored" if self.score is None else "right" if self.score.is_right else "wrong"


@dataclass(frozen=True)
class Gallery:
    """Cards, the worst first, and sentences about what is left out."""

    cards: list[Card]
    examples: list[tuple[str, list[Card]]]
    """Groups of examples with marks: best, middle and worst."""
    notes: list[str]
    has_marks: bool
    """True if a picture has the mark of a reference or a prediction."""


def gallery(rows: Sequence[Row], scores: Sequence[Score | None], split: str, pictures: Pictures) -> Gallery:
    """Return the gallery of predictions.

    Args:
        rows: Rows of `predictions.jsonl`.
        scores: Score of each row; None: it has none.
        split: Name of the evaluated split.
        pictures: Pictures of the rows.
    """
    order = sorted(range(len(rows)), key=lambda number: _key(scores[number]))
    chosen = order[:MAX_CARDS]
    rest = chosen[WORST:]
    step = max(1, -(-len(rest) // OTHERS))
    with_pictures = set(chosen[:WORST]) | set(rest[::step])
    cards, has_marks = [], False
    for number in chosen:
        drawn: list[Picture] = []
        if number in with_pictures and pictures.left > 0:
            prediction, reference = answers_of(rows[number])
            sample = pictures.sample(split, str(rows[number]["source"]))
            drawn = pictures.draw(sample, prediction.marks, reference.marks)
            has_marks |= bool(drawn and (prediction.marks or reference.marks))
        cards.append(_card(number, rows[number], scores[number], drawn))
    shown = sum(bool(card.pictures) for card in cards)
    notes = []
    if len(rows) > len(cards):
        notes.append(f"The {len(cards):,} worst of {len(rows):,} predictions are shown; predictions.jsonl has all.")
    if 0 < shown < len(cards):
        notes.append(f"{shown:,} of the {len(cards):,} cards have pictures, so that the file stays small.")
    if pictures.problem:
        notes.append(pictures.problem)
    return Gallery(cards, _examples(rows, cards), notes, has_marks)


def _key(score: Score | None) -> float:
    """Return the sort key of a score: the worst first, rows without a score last."""
    return 2.0 if score is None else score.quality


def _card(number: int, row: Row, score: Score | None, pictures: list[Picture]) -> Card:
    prediction, reference = row_texts(row)
    probabilities = sorted((row.get("scores") or {}).items(), key=lambda item: -item[1])
    return Card(
        number + 1,
        str(row["source"]),
        str(row.get("patient") or ""),
        str(row.get("task") or ""),
        shortened(str(row.get("question") or "").replace(IMAGE, "").strip(), MAX_TEXT),
        reference,
        prediction,
        ", ".join(f"{name} {100 * value:.1f} %" for name, value in probabilities[:5]),
        score,
        pictures,
    )


def row_texts(row: Row) -> tuple[str, str]:
    """Return the texts of prediction and reference of a row, with the numbers of boxes and masks in words."""
    texts = []
    for name, prefix in (("prediction", ""), ("reference", "reference_")):
        text = str(row[name])
        for placeholder in (BOX, POINT):
            text = text.replace(placeholder, "")
        parts = [shortened(text.strip(), MAX_TEXT)] if text.strip() else []
        measures = {} if parts else row.get(f"{prefix}measures") or {}
        parts += [
            f"{key} {value:.1f} {UNITS.get(key, '')}".strip() for key, value in measures.items() if value is not None
        ]
        for field, one, several in (
            ("boxes", "box", "boxes"),
            ("masks", "mask", "masks"),
            ("points", "point", "points"),
        ):
            count = len(row.get(prefix + field) or ())
            if count and not (field == "boxes" and row.get(f"{prefix}masks")):
                parts.append(f"({count} {one if count == 1 else several})")
        texts.append(" ".join(parts))
    return texts[0], texts[1]


def _examples(rows: Sequence[Row], cards: Sequence[Card]) -> list[tuple[str, list[Card]]]:
    """Return the best, middle and worst cards with pictures whose rows have marks; none for fewer than three."""
    marked = [card for card in cards if card.pictures and card.score and _has_marks(rows[card.number - 1])]
    if len(marked) < 3:
        return []
    count = min(EXAMPLES, len(marked) // 3)
    middle = (len(marked) - count) // 2
    parts = (("Best", marked[-count:][::-1]), ("Middle", marked[middle : middle + count]), ("Worst", marked[:count]))
    return [(title, list(part)) for title, part in parts]


def _has_marks(row: Row) -> bool:
    return any(row.get(prefix + field) for prefix in ("", "reference_") for field in ("boxes", "masks", "points"))
