"""Answer of a model to a question, with its conversation, and its presentation in terminals and notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from mllm.contents import measure_value
from mllm.metrics.areas import boxes_of
from mllm.report.drawing import draw_answer, draw_marks, numbered
from mllm.report.html_page import VIEWED, data_url
from mllm.structures import IMAGE, Answer, Sample, Turn

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from mllm.models.generation.requested import TokenProbability

SHOWN = 640
"""Longest side in pixels of a picture in a notebook."""


@dataclass(frozen=True)
class ModelAnswer(Answer):
    """Answer of a model, with the question that it answers.

    In a notebook it is shown as its pictures with boxes and masks, its text and its measures.
    """

    question: Sample = field(default_factory=lambda: Sample([]), repr=False)
    """The conversation up to the answer, and its images."""
    model: str = ""
    """Name of the model that answered."""
    end: str = "stop"
    """Reason why the text ends: 'stop' (it is complete), 'length' (its maximum) or 'cancelled'."""
    prompt_tokens: int = 0
    """Number of tokens of the conversation with its images."""
    probabilities: tuple[TokenProbability, ...] = field(default=(), repr=False)
    """Log probability of each token, if `top_logprobs` was set."""

    @property
    def images(self) -> list[Image]:
        """Return the images of the conversation, to which `Mark.image` refers."""
        return self.question.images

    @property
    def boxes(self) -> list[tuple[float, float, float, float]]:
        """Return x1 y1 x2 y2 of each mark with a box or a mask, in pixels of its image."""
        return [box.corners for box in boxes_of(self)]

    @property
    def masks(self) -> list[np.ndarray]:
        """Return the masks [H, W] bool."""
        return [mark.mask for mark in self.marks if mark.mask is not None]

    @property
    def conversation(self) -> list[Turn]:
        """Return the turns of the conversation with the answer."""
        # A placeholder in a generated answer would stand for an image in the next prompt.
        return [*self.question.turns, Turn("assistant", self.text.replace(IMAGE, ""))]

    def draw(self, path: str | Path) -> list[Path]:
        """Write a picture of each image with its marks and return the files; see `draw_answer`."""
        return draw_answer(self.images, self.marks, Path(path))

    def pictures(self) -> list[Image]:
        """Return each image with its numbered marks."""
        marks = numbered(self.marks)
        return [
            draw_marks(image, [entry for entry in marks if entry.mark.image == index])
            for index, image in enumerate(self.images)
        ]

    def __str__(self) -> str:
        return format_answer(self, len(self.images))

    def _repr_html_(self) -> str:
        urls = [data_url(picture, SHOWN, VIEWED) for picture in self.pictures()]
        pictures = "".join(f'<img src="{url}" style="max-width:100%">' for url in urls)
        return f"<div>{pictures}<p>{escape(str(self)).replace(chr(10), '<br>')}</p>{_table(self.measures)}</div>"


def format_answer(answer: Answer, image_count: int) -> str:
    """Return the text of an answer and one line per mark, in pixels; the line names the image if there are several."""
    lines = [answer.text]
    for number, mark in enumerate(answer.marks, start=1):
        parts = []
        if mark.box is not None:
            parts.append("box x1 y1 x2 y2 = " + " ".join(f"{value:.1f}" for value in mark.box))
        if mark.point is not None:
            parts.append("point x y = " + " ".join(f"{value:.1f}" for value in mark.point))
        if mark.mask is not None:
            parts.append(f"mask of {int(mark.mask.sum()):,} pixels")
        image = f" in image {mark.image + 1}" if image_count > 1 else ""
        lines.append(f"  {number}{image}: {', '.join(parts)}")
    return "\n".join(lines)


def _table(measures: Mapping[str, float]) -> str:
    """Return a table of measures; an empty text without any."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{measure_value(name, value)}</td></tr>" for name, value in measures.items()
    )
    return f"<table>{rows}</table>" if rows else ""
