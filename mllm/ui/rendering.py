"""HTML of the page: the picture in view, the conversation, and messages. Pictures are inside the HTML, in no file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mllm.contents import measure_value, measures_text
from mllm.dataset.readers.geometry import spacing_of
from mllm.metrics.areas import box_of
from mllm.report.drawing import Drawn, draw_marks, numbered
from mllm.report.html_page import VIEWED, data_url, rendered
from mllm.structures import BOX, POINT

if TYPE_CHECKING:
    from PIL import Image

    from mllm.predict.model_answer import ModelAnswer
    from mllm.ui.conversation import Exchange, Shown

VIEWER = 1024
"""Maximum longer side in pixels of the picture in view, and of pictures with marks."""
THUMBNAIL = 240
"""Maximum longer side in pixels of the picture of a question."""


_PLACE = re.compile("|".join(map(re.escape, (BOX, POINT))))
_FEW = 9
"""Number of marks from which a text names the first and the last one only."""


def picture_html(image: Image.Image, caption: str) -> str:
    """Return the picture in view with its caption."""
    return _render("picture.html", url=_data_url(image, VIEWER), caption=caption)


def message_html(sentence: str, is_error: bool = True) -> str:
    """Return a sentence for the user; an empty text shows nothing."""
    return _render("message.html", sentence=sentence, is_error=is_error) if sentence else ""


def report_html(address: str, name: str) -> str:
    """Return a frame with a report."""
    return _render("report.html", address=address, name=name)


def conversation_html(exchanges: Sequence[Exchange], named: bool) -> str:
    """Return a conversation. `named`: each answer has the name of its model."""
    shown = [
        {
            "question": exchange.question,
            "pictures": [{"url": _data_url(one.image, THUMBNAIL), "caption": one.caption} for one in exchange.new],
            "answers": [_answer(name, answer, exchange.pictures) for name, answer in exchange.answers.items()],
        }
        for exchange in exchanges
    ]
    return _render("conversation.html", exchanges=shown, named=named)


def chosen_html(views: Sequence[tuple[str, Shown | None]]) -> str:
    """Return the pictures that were chosen for the views of a model of measures."""
    shown = [(name, one and {"url": _data_url(one.image, THUMBNAIL), "caption": one.caption}) for name, one in views]
    return _render("chosen.html", views=shown)


def writing_html(answers: Sequence[tuple[str, str, bool]], named: bool) -> str:
    """Return answers that are written: the name of each model, its text so far, and True if the answer is complete."""
    return _render("writing.html", answers=answers, named=named)


def _answer(name: str, answer: ModelAnswer, pictures: Sequence[Shown]) -> dict[str, Any]:
    """Return the values of the template for an answer."""
    marks = numbered(answer.marks)
    return {
        "name": name,
        "text": "" if answer.text == measures_text(answer.measures) else _with_labels(answer.text.strip(), marks),
        "pictures": [
            {"url": _data_url(draw_marks(picture.image, inside), VIEWER), "caption": picture.caption}
            for index, picture in enumerate(pictures)
            if (inside := [entry for entry in marks if entry.mark.image == index])
        ],
        "marks": [_mark(entry, pictures) for entry in marks],
        "measures": [(measure, measure_value(measure, value)) for measure, value in answer.measures.items()],
        "notes": list(_notes(answer)),
    }


def _with_labels(text: str, marks: Sequence[Drawn]) -> str:
    """Return the text of an answer with the labels of the marks in place of the words that stand for them."""
    parts = _PLACE.split(text)
    if len(parts) == 1:
        return text
    labels = [f"[{entry.label}]" for entry in marks]
    if len(parts) != len(labels) + 1:  # a word that stands for several marks, or for none that can be read
        first = " ".join(labels) if len(labels) < _FEW else f"{labels[0]} to {labels[-1]}"
        labels = [first, *[""] * (len(parts) - 2)]
    return "".join(part + label for part, label in zip(parts, [*labels, ""], strict=True)).strip()


def _mark(entry: Drawn, pictures: Sequence[Shown]) -> dict[str, Any]:
    """Return a row of the table of marks: its place in pixels of the picture, and its size."""
    mark, size = entry.mark, ""
    box = box_of(mark)
    label = entry.label if len(pictures) < 2 else f"{entry.label} (picture {mark.image + 1})"
    spacing = spacing_of(pictures[mark.image].image) if mark.image < len(pictures) else None
    x = y = ""
    if mark.point is not None:
        x, y = (f"{value:.0f}" for value in mark.point)
    if box is not None:
        x1, y1, x2, y2 = box.corners
        x, y = f"{x1:.0f}–{x2:.0f}", f"{y1:.0f}–{y2:.0f}"
        size = f"{x2 - x1:.0f} × {y2 - y1:.0f} pixels"
        if spacing is not None:
            size = f"{(x2 - x1) * spacing[0]:.1f} × {(y2 - y1) * spacing[1]:.1f} mm"
    if mark.mask is not None:
        area = int(mark.mask.sum())
        size = f"{area:,} pixels" if spacing is None else f"{area * spacing[0] * spacing[1]:,.1f} mm²"
    return {"label": label, "color": entry.color, "x": x, "y": y, "size": size}


def _notes(answer: ModelAnswer) -> Iterator[str]:
    """Yield sentences about an answer that is incomplete or has unreadable places."""
    if answer.end == "cancelled":
        yield "The answer was stopped."
    if answer.end == "length":
        yield "The answer ends at the maximum length, which the options set."
    if answer.unreadable:
        yield f"Boxes or points in the answer that cannot be read: {answer.unreadable}."


def _data_url(image: Image.Image, longest: int) -> str:
    return data_url(image, longest, VIEWED)


def _render(template: str, **values: Any) -> str:
    return rendered("mllm.ui", template, **values)
