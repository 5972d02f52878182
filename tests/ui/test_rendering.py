"""HTML of answers: places with their numbers, measures, notes, and no markup of a text."""

from __future__ import annotations

import re

import numpy as np
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
        ["mark", "x", "y", "size"],
        ["1 (picture 1)", "1 to 11", "2 to 32", "20.0 × 60.0 mm"],
        ["2 (picture 2)", "5 to 25", "10 to 20", "200 pixels"],
        ["3 (picture 1)", "3", "4", ""],
        ["4 (picture 1)", "5 to 25", "10 to 20", "800.0 mm²"],
        ["EF", "55.0"],
        ["EDV", "unknown"],
    ]
    assert html.count("<img") == 4, "two pictures of the question, and both with marks"
    assert "<script>" not in html and "<b>" not in html and "a &lt; b?" in html
    assert "ends at the maximum length" in html and "cannot be read: 2" in html


def test_a_message_is_an_alert_and_no_message_is_nothing():
    assert message_html("") == ""
    assert 'role="alert"' in message_html("a <b>") and "&lt;b&gt;" in message_html("a <b>")
    assert 'role="status"' in message_html("Kept.", is_error=False)
