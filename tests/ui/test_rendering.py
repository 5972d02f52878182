"""HTML of answers: places with their numbers, measures, notes, and no markup of a text."""

from __future__ import annotations

import re

import numpy as np
import pytest
from medical_files import write_dicom
from PIL import Image

from mllm.dataset.readers import read_images
from mllm.predict.model_answer import ModelAnswer
from mllm.structures import Mark
from mllm.ui.conversation import Exchange, Shown
from mllm.ui.rendering import conversation_html, message_html


def rows(html: str) -> list[list[str]]:
    """Return the texts of the cells of all rows."""
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)]
    return [[re.sub(r"<.*?>", "", cell) for cell in row] for row in cells]


def test_marks_have_numbers_in_pixels_or_millimeters(tmp_path):
    values = np.random.default_rng(0).integers(0, 1000, (40, 50), dtype=np.int16)
    (scan,) = read_images(write_dicom(tmp_path / "a.dcm", values, PixelSpacing=[2.0, 2.0], Modality="MR"))
    plain = Image.fromarray(np.zeros((40, 50, 3), np.uint8))
    mask = np.zeros((40, 50), bool)
    mask[10:20, 5:25] = True
    marks = (Mark(box=(1.2, 2.0, 11.2, 32.0)), Mark(mask=mask, image=1), Mark(point=(3.0, 4.4)), Mark(mask=mask))
    answer = ModelAnswer(
        "<script>alert(1)</script>", marks, 2, measures={"EF": 55.04, "EDV": float("nan")}, end="length"
    )
    pictures = (Shown(scan, "<b>", 0), Shown(plain, "b.png", 1))
    html = conversation_html([Exchange("a < b?", pictures, pictures, {"first": answer})], named=True)
    assert rows(html) == [
        ["mark", "x (pixels)", "y (pixels)", "size"],
        ["1 (picture 1)", "1–11", "2–32", "20.0 × 60.0 mm"],
        ["2 (picture 2)", "5–25", "10–20", "200 pixels"],
        ["3 (picture 1)", "3", "4", ""],
        ["4 (picture 1)", "5–25", "10–20", "800.0 mm²"],
        ["EF", "55.0 %"],
        ["EDV", "unknown"],
    ]
    assert html.count("<img") == 4, "two pictures of the question, and both with marks"
    assert "<script>" not in html and "<b>" not in html and "a &lt; b?" in html
    assert "ends at the maximum length" in html and "cannot be read: 2" in html


@pytest.mark.parametrize(
    "text, count, shown",
    [
        ("The lesion: <box> and <box>.", 2, "The lesion: [1] and [2]."),
        ("Answer: <box>", 3, "Answer: [1] [2] [3]"),
        ("Answer: <box> or <point>", 9, "Answer: [1] to [9] or"),
        ("Nothing.", 1, "Nothing."),
        ("Here: <box>", 0, "Here:"),
    ],
)
def test_words_that_stand_for_marks_are_shown_as_their_labels(text, count, shown):
    answer = ModelAnswer(text, (Mark(point=(1.0, 1.0)),) * count)
    html = conversation_html([Exchange("Where?", (), (), {"first": answer})], named=False)
    assert re.findall(r'class="text">(.*?)</p>', html) == [shown]


def test_a_message_is_an_alert_and_no_message_is_nothing():
    assert message_html("") == ""
    assert 'role="alert"' in message_html("a <b>") and "&lt;b&gt;" in message_html("a <b>")
    assert 'role="status"' in message_html("Kept.", is_error=False)
