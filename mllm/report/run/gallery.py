"""Gallery of predictions: cards with question, reference, prediction, score and pictures, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm.contents import measure_value
from mllm.engine.predictions import answers_of
from mllm.parsing import parse_boxes, parse_instances
from mllm.report.html_page import shortened
from mllm.report.run.pictures import Picture, Pictures
from mllm.report.run.scores import Score
from mllm.structures import BOX, IMAGE, POINT, Answer, Mark

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
    has_marks: bool
    """True if the pictures have the marks of the reference or the prediction."""

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

    @property
    def has_marks(self) -> bool:
        """Return True if a picture has the mark of a reference or a prediction."""
        return any(card.has_marks for card in self.cards)


def gallery(rows: Sequence[Row], worst: Sequence[tuple[int, Score | None]], split: str, pictures: Pictures) -> Gallery:
    """Return the gallery of predictions.

    Args:
        rows: Rows of `predictions.jsonl`.
        worst: Indices and scores of the rows to show, the worst first; None: a row has no score.
        split: Name of the evaluated split.
        pictures: Pictures of the rows.
    """
    chosen = [number for number, _ in worst]
    rest = chosen[WORST:]
    step = max(1, -(-len(rest) // OTHERS))
    with_pictures = set(chosen[:WORST]) | set(rest[::step])
    pictures.find(split, {str(rows[number]["source"]) for number in with_pictures})
    cards = []
    for number, score in worst:
        row = rows[number]
        drawn: list[Picture] = []
        has_marks = False
        if number in with_pictures and pictures.left > 0:
            predicted, true = map(marks_of, answers_of(row))
            sample = pictures.sample(split, str(row["source"]))
            drawn = pictures.draw(sample, predicted, true)
            has_marks = bool(drawn and (predicted or true))
        cards.append(_card(number, row, score, drawn, has_marks))
    shown = sum(bool(card.pictures) for card in cards)
    notes = []
    if len(rows) > len(cards):
        notes.append(f"The {len(cards):,} worst of {len(rows):,} predictions are shown; predictions.jsonl has all.")
    if 0 < shown < len(cards):
        notes.append(f"{shown:,} of the {len(cards):,} cards have pictures, so that the file stays small.")
    if pictures.problem:
        notes.append(pictures.problem)
    return Gallery(cards, _examples(cards), notes)


def marks_of(answer: Answer) -> Sequence[Mark]:
    """Return the marks of an answer; without marks the boxes that its text lists in pixels of the first image."""
    if answer.marks:
        return answer.marks
    listed = parse_boxes(answer.text) or [
        box for boxes in (parse_instances(answer.text) or {}).values() for box in boxes
    ]
    return [Mark(box=box) for box in listed]


def _key(score: Score | None) -> float:
    """Return the sort key of a score: the worst first, rows without a score last."""
    return 2.0 if score is None else score.quality


def _card(number: int, row: Row, score: Score | None, pictures: list[Picture], has_marks: bool) -> Card:
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
        ", ".join(f"{name} {100 * value:.1f}\N{NO-BREAK SPACE}%" for name, value in probabilities[:5]),
        score,
        pictures,
        has_marks,
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
        parts += [f"{key} {measure_value(key, value)}" for key, value in measures.items() if value is not None]
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


def _examples(cards: Sequence[Card]) -> list[tuple[str, list[Card]]]:
    """Return the best, middle and worst cards whose pictures have marks; none for fewer than three or equal scores."""
    marked = [card for card in cards if card.has_marks and card.score]
    if len(marked) < 3 or len({_key(card.score) for card in marked}) == 1:
        return []
    count = min(EXAMPLES, len(marked) // 3)
    middle = (len(marked) - count) // 2
    parts = (("Best", marked[-count:][::-1]), ("Middle", marked[middle : middle + count]), ("Worst", marked[:count]))
    return [(title, list(part)) for title, part in parts]
