"""Drawn marks are visible and at their location, and other pixels are unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm.errors import ConfigError
from mllm.report.drawing import COLORS, PREDICTED, TRUE, draw_answer, draw_marks, numbered, refuse_drawing
from mllm.structures import Mark

SIDE = 600


def gray(value: int, width: int = SIDE, height: int = SIDE) -> Image.Image:
    return Image.new("L", (width, height), value)


def disk(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.hypot(columns + 0.5 - x, rows + 0.5 - y) < radius


def changed(value: int, *marks: Mark) -> np.ndarray:
    """Return the largest change [H, W] of each pixel of a uniform image over its channels."""
    pixels = np.asarray(draw_marks(gray(value), numbered(marks)), dtype=float)
    return np.abs(pixels - value).max(axis=2)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_the_edges_of_a_box_are_visible_on_every_gray_and_its_inside_is_unchanged(value: int) -> None:
    moved = changed(value, Mark(box=(100.0, 150.0, 300.0, 400.0)))
    for row, column in ((150, 200), (400, 200), (250, 100), (250, 300)):
        assert moved[row - 1 : row + 1, column - 1 : column + 1].min() > 60
    assert moved[160:390, 110:290].max() == 0
    assert moved[420:, :].max() == 0


def test_a_line_between_pixels_is_smooth() -> None:
    """A shift of the line by a third of a pixel changes no pixel by the full contrast of the line."""
    pictures = [
        np.asarray(draw_marks(gray(0), numbered([Mark(box=(x, 150.0, 300.0, 400.0))])), dtype=float)
        for x in (100, 100.33)
    ]
    difference = np.abs(pictures[0] - pictures[1])[200:390, 90:110].max()
    assert 20 < difference < 150


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_mask_is_tinted_and_outlined(value: int) -> None:
    moved = changed(value, Mark(mask=disk(300, 300, 80)))
    assert 20 < moved[300, 300] < 130, "the inside must still be seen"
    assert moved[300, 380] > 60, "the contour"
    assert moved[300, 395] == 0
    assert moved[300, 380] > moved[300, 300] + 20 or value == 128


def test_masks_of_one_or_no_pixel_are_drawn() -> None:
    one = np.zeros((SIDE, SIDE), bool)
    one[200, 200] = True
    assert changed(0, Mark(mask=one))[200, 200] > 0
    changed(0, Mark(mask=np.zeros((SIDE, SIDE), bool)))


def test_marks_have_different_colors_and_labels_do_not_overlap() -> None:
    box = (100.0, 150.0, 300.0, 400.0)
    plates = []
    for count in range(1, 6):
        pixels = np.asarray(draw_marks(gray(0), numbered([Mark(box=box)] * count))).astype(int)
        plates.append((np.abs(pixels - np.array(COLORS[count - 1])).max(axis=2) < 3).sum())
    assert min(plates) > 100, "the last label is covered"
    assert len(set(COLORS)) == len(COLORS)


def test_more_marks_than_colors_and_marks_at_every_edge_are_drawn() -> None:
    marks = [Mark(box=(x, y, min(x + 90, SIDE), min(y + 90, SIDE))) for x in range(0, 600, 150) for y in (0, 200, 560)]
    marks += [Mark(box=(0.0, 0.0, float(SIDE), float(SIDE))), Mark(point=(0.0, 0.0)), Mark(point=(SIDE, SIDE))]
    moved = changed(255, *marks)
    assert moved[:2, 300].min() > 60, "a line along the border lies inside of the picture"
    assert len(marks) > len(COLORS)


def test_a_small_picture_is_enlarged_by_a_whole_number() -> None:
    small = draw_marks(gray(90, 100, 60), numbered([Mark(box=(10.0, 10.0, 50.0, 40.0))]))
    assert small.size == (600, 360)
    pixels = np.abs(np.asarray(small, dtype=float) - 90).max(axis=2)
    assert pixels[150, 58:62].min() > 40, "the left edge lies at 6 x 10"
    assert draw_marks(gray(0, 512, 300), []).size == (512, 300)


def test_every_image_with_a_mark_becomes_a_numbered_file(tmp_path: Path) -> None:
    images = [gray(0), gray(128), gray(255)]
    marks = [Mark(box=(10.0, 10.0, 90.0, 90.0), image=2), Mark(point=(50.0, 50.0), image=0)]
    files = draw_answer(images, marks, tmp_path / "new" / "seen.png")
    assert [file.name for file in files] == ["seen-1.png", "seen-3.png"]
    pixels = np.asarray(Image.open(files[0]))
    assert (np.abs(pixels.astype(int) - np.array(COLORS[1])).max(axis=2) < 3).any(), "the second mark's color"
    assert not (np.abs(pixels.astype(int) - np.array(COLORS[0])).max(axis=2) < 3).any()
    assert draw_answer(images[:1], [], tmp_path / "none.png") == []
    assert draw_answer(images[:1], marks[1:], tmp_path / "one.png") == [tmp_path / "one.png"]
    assert not (tmp_path / "none.png").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    refuse_drawing(tmp_path / "b.png", many=False)
    refuse_drawing(tmp_path / "folder", many=True)
    for path, many, message in (
        ("a.png", False, "exists"),
        ("b.tif", False, "png"),
        (".", True, "empty"),
        ("a.png", True, "exists"),
    ):
        with pytest.raises(ConfigError, match=message):
            refuse_drawing(tmp_path / path, many=many)


def test_true_marks_have_their_own_color_and_a_legend(tmp_path: Path) -> None:
    """Edges and legend have the two colors, and a picture without truth has no legend."""
    predicted, true = Mark(box=(100.0, 150.0, 300.0, 400.0)), Mark(box=(130.0, 180.0, 340.0, 430.0))
    (file,) = draw_answer([gray(90)], [predicted], tmp_path / "both.png", [true])
    pixels = np.asarray(Image.open(file)).astype(int)
    assert pixels.shape[0] > SIDE and pixels.shape[1] == SIDE
    assert tuple(pixels[300, 100]) == PREDICTED and tuple(pixels[300, 339]) == TRUE
    legend = pixels[SIDE:]
    for color in (PREDICTED, TRUE):
        assert (legend == np.array(color)).all(axis=2).sum() > 100
    (missed,) = draw_answer([gray(90)], [], tmp_path / "missed.png", [true])
    assert Image.open(missed).size == (SIDE, pixels.shape[0]), "a missing prediction is drawn, too"
    (alone,) = draw_answer([gray(90)], [predicted], tmp_path / "alone.png")
    assert Image.open(alone).size == (SIDE, SIDE)
    (narrow,) = draw_answer([gray(90, 40, 600)], [predicted], tmp_path / "narrow.png", [true])
    assert Image.open(narrow).width > 200, "the legend fits"
