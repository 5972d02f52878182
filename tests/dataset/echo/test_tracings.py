"""Tests of areas and frames of tracings."""

import numpy as np
import pytest

from mllm.dataset.echo.tracings import CHORDS, POINTS, outline, polygon_area, read_tracings, stem


def test_the_area_of_polygons_by_hand():
    square = np.array([[0, 0], [4, 0], [4, 3], [0, 3]], float)
    assert polygon_area(square) == polygon_area(square[::-1]) == polygon_area(square + 100) == 12
    assert polygon_area(np.array([[0, 0], [6, 0], [0, 5]])) == 15


def test_a_polygon_has_both_sides_and_not_the_long_axis():
    lines = np.array([[5, 0, 5, 9], [4, 1, 6, 1], [3, 2, 7, 2], [2, 3, 8, 3]])
    assert outline(lines).tolist() == [[4, 1], [3, 2], [2, 3], [8, 3], [7, 2], [6, 1]]
    assert polygon_area(outline(lines)) == 8  # a trapezium 2 high with sides 2 and 6


def test_frames_in_the_order_of_the_file(tmp_path):
    rows = [",".join(CHORDS)]
    for name, frame, width in (("b.avi", 7, 4), ("a.avi", 3, 1), ("b.avi", 2, 2)):
        rows += [f"{name},0,0,0,3,{frame}", f"{name},0,1,{width},1,{frame}", f"{name},0,2,{width},2,{frame}"]
    rows += ["b.avi,0,0,0,3,9", "", "c.avi,broken"]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(rows) + "\n")
    tracings, errors = read_tracings(path, {"b"})
    assert not errors
    assert [(one.frame, one.area, one.line) for one in tracings["b"]] == [(7, 4, 2), (2, 2, 8)]
    assert list(tracings) == ["b"]
    fault = "must have four coordinates and the number of a frame"
    assert read_tracings(path, {"c"}) == ({}, {"c": f"{path}, line 13: {fault}"})


@pytest.mark.parametrize("coordinate", ["nan", "inf"])
def test_non_finite_coordinates_are_refused(tmp_path, coordinate: str):
    path = tmp_path / "t.csv"
    path.write_text(",".join(CHORDS) + f"\na.avi,0,0,0,3,3\na.avi,{coordinate},1,4,1,3\n")
    assert "t.csv, line 3: must have four coordinates" in read_tracings(path, {"a"})[1]["a"]


def test_names_with_and_without_suffix():
    assert [stem(name) for name in ("a.avi", " a.AVI ", "a", "a.b.mp4")] == ["a", "a", "a", "a.b"]


def test_points_of_echonet_pediatric_are_an_outline_and_untraced_phases_are_skipped(tmp_path):
    square = [(0, 0), (4, 0), (4, 3), (0, 3)]
    rows = [",".join(POINTS), *(f"a.avi,{x},{y},12" for x, y in square), "a.avi,,,No Systolic", "b.avi,1,,5"]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(rows) + "\n")
    assert [(one.frame, one.area, one.line) for one in read_tracings(path, {"a"})[0]["a"]] == [(12, 12, 2)]
    assert "t.csv, line 7: must have two coordinates" in read_tracings(path, {"b"})[1]["b"]
