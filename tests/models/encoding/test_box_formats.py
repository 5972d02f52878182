"""Box formats: written text is read back, malformed text of models is read, and reading never raises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mllm.errors import ConfigError
from mllm.models.encoding.box_formats import LocationTokens, NormalizedText, PerceptionToken
from mllm.registry import BOX_FORMATS

READABLE = [NormalizedText(), NormalizedText(precision=1), NormalizedText(6), LocationTokens(), LocationTokens(2)]
SHARES = st.floats(-0.3, 1.3)
BOXES = st.lists(st.tuples(SHARES, SHARES, SHARES, SHARES), max_size=4)
POINTS = st.lists(st.tuples(SHARES, SHARES), max_size=4)


def step(box_format):
    """Return the distance of two adjacent values that the format can write."""
    return 1 / (box_format.num_bins - 1) if isinstance(box_format, LocationTokens) else 10.0**-box_format.precision


def sorted_corners(boxes):
    """Return boxes [A, 4] clipped to [0, 1], upper left corner first, by numpy."""
    corners = np.clip(np.array(boxes, float).reshape(-1, 2, 2), 0, 1)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


@pytest.mark.parametrize("box_format", READABLE, ids=lambda one: f"{type(one).__name__}-{step(one):g}")
@settings(max_examples=40, deadline=None)
@given(boxes=BOXES, points=POINTS)
@example(boxes=[], points=[])
@example(boxes=[(0.9, 0.8, 0.1, 0.2)], points=[(-0.1, 1.2)])
def test_written_locations_are_read(box_format, boxes, points):
    text = f"There: {box_format.write_boxes(boxes)} and {box_format.write_points(points)}."
    boxes_read, unreadable = box_format.read(text)
    assert unreadable == 0
    assert box_format.read_boxes(text) == (boxes_read[: len(boxes)], 0)
    assert box_format.read_points(text) == (boxes_read[len(boxes) :], 0)
    assert len(boxes_read) == len(boxes) + len(points)
    reach = step(box_format) / 2 + 1e-9
    assert np.abs(np.array(boxes_read[: len(boxes)]).reshape(-1, 4) - sorted_corners(boxes)).max(initial=0) <= reach
    clipped = np.clip(np.array(points).reshape(-1, 2), 0, 1)
    assert np.abs(np.array(boxes_read[len(boxes) :]).reshape(-1, 2) - clipped).max(initial=0) <= reach


def test_boxes_and_points_are_written_as_in_shikra():
    assert NormalizedText().write_boxes([(0.1, 0.25, 0.4801, 0.76), (0, 0, 1, 1)]) == (
        "[0.100,0.250,0.480,0.760;0.000,0.000,1.000,1.000]"
    )
    assert NormalizedText(2).write_points([(0.1, 0.256)]) == "[0.10,0.26]"
    tokens = LocationTokens()
    assert tokens.write_boxes([(0, 0.5, 1, 1), (0.1, 0.1, 0.2, 0.2)]) == (
        "<b_st><bin_0><bin_500><bin_1000><bin_1000><b_sep><bin_100><bin_100><bin_200><bin_200><b_ed>"
    )
    assert tokens.write_points([(0, 1)]) == "<p_st><bin_0><bin_1000><p_ed>"
    assert len(set(tokens.tokens)) == 1001 + 6
    assert {"<bin_0>", "<bin_1000>", "<b_st>", "<p_sep>"} <= set(tokens.tokens)
    assert NormalizedText().tokens == ()


BOX = (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ("text", "boxes", "unreadable"),
    [
        ("", [], 0),
        ("no box at all", [], 0),
        ("[] and [ ]", [], 0),
        ("[ 0.1 , 0.2,0.3 ,0.4 ]", [BOX], 0),
        ("[0.1,0.2,\n0.3,0.4; 0.1,0.2,0.3,0.4]", [BOX, BOX], 0),
        ("[0.3,0.4,0.1,0.2]", [BOX], 0),
        ("[-0.05,0.2,1.05,0.4]", [(0, 0.2, 1, 0.4)], 0),
        ("[.1,.2,.3,.4]", [BOX], 0),
        ("[0.1,0.2][0.1,0.2,0.3,0.4]", [(0.1, 0.2), BOX], 0),
        ("the box 0.1, 0.2, 0.3, 0.4 .", [BOX], 0),
        ("(0.1,0.2,0.3,0.4)", [BOX], 0),
        ("0.1,0.2,0.3,0.4]", [BOX], 0),
        ("[0.1,0.2,0.3,0.4 is it", [BOX], 0),
        ("[0.1,0.2,0.3,0.4. It", [BOX], 0),
        ("[0.1,0.2,0.3,0.4;0.1,0.2,0.3,0.4 is it", [BOX, BOX], 0),
        ("[[0.1,0.2,0.3,0.4]]", [BOX], 1),
        ("[[0.1,0.2,0.3,0.4], [0.1,0.2,0.3,0.4]]", [BOX, BOX], 1),
        # Cut at the longest answer: the last number may lack digits, unless it has all of them.
        ("[0.100,0.200,0.300,0.400", [BOX], 0),
        ("[0.100,0.200,0.300,0.4", [], 1),
        ("[0.100,0.200,0.300,0.", [], 1),
        ("[0.100,0.200,0.300,0.400;0.100,0.200", [BOX], 1),
        ("[0.100,0.200,0.300,0.400;", [BOX], 1),
        ("[0.100,0.200", [], 1),
        ("Answer: [", [], 1),
        # Numbers that are not fractions of the image.
        ("[120, 30, 400, 500]", [], 1),
        ("[0.1,0.2,0.3]", [], 1),
        ("[0.1,0.2,0.3,0.4,0.5]", [], 1),
        ("[0.1,0.2,x,0.4]", [], 1),
        ("[nan,nan,nan,nan]", [], 0),
        ("[0.1,nan,0.2,inf]", [], 1),
        ("[see figure 3] and [sic]", [], 0),
        ("slices of 0.5, 1.2 and 2.5 mm; at 3, 4, 5, 6", [], 0),
        ("[1]", [], 1),
    ],
)
def test_numbers_as_models_write_them(text, boxes, unreadable):
    assert NormalizedText().read(text) == (boxes, unreadable)


@pytest.mark.parametrize(
    ("text", "boxes", "unreadable"),
    [
        ("", [], 0),
        ("<b_st><b_ed> <p_st> <p_ed>", [], 0),
        ("<b_st> <bin_1> <bin_2>\n<bin_3><bin_4> <b_ed>", [BOX], 0),
        ("<b_st><bin_3><bin_4><bin_1><bin_2><b_ed>", [BOX], 0),
        ("<p_st><bin_1><bin_2><p_sep><bin_3><bin_4><p_ed>", [BOX[:2], BOX[2:]], 0),
        ("<bin_1><bin_2><bin_3><bin_4>", [BOX], 0),
        ("<bin_1><bin_2>", [], 1),
        ("<b_st><bin_1><bin_2><bin_3><bin_4> there", [BOX], 0),
        ("<b_st><bin_1><bin_2><bin_3><bin_4><b_sep><bin_1>", [BOX], 1),
        ("<b_st><bin_1><bin_2><bin_3><bin_4><b_sep>", [BOX], 1),
        ("<b_st>", [], 1),
        ("<b_st><bin_1><bin_2><bin_3><b_ed>", [], 1),
        ("<b_st><bin_1><bin_2><bin_3><bin_11><b_ed>", [], 1),
        ("<p_st><bin_1><bin_2><bin_3><p_ed>", [], 1),
        ("<b_st><p_st><bin_1><bin_2><p_ed>", [BOX[:2]], 1),
        ("<b_st><bin_" + "9" * 5000 + "><b_ed>", [], 0),
    ],
)
def test_tokens_as_models_write_them(text, boxes, unreadable):
    assert LocationTokens(num_bins=11).read(text) == (boxes, unreadable)


PIECES = ["[", "]", ";", ",", "-", ".", " ", "\n", "0", "0.5", "1e9", "²", "٣", "nan", "x", "<bin_3>", "<bin_99999>"]
PIECES += ["<b_st>", "<b_sep>", "<b_ed>", "<p_st>", "<p_ed>", "<loc>", "<obj_vis_s>", "<obj_vis_e>", "<box>", "{}"]


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=25).map("".join)))
def test_reading_never_raises_and_stays_within(text):
    for box_format in (*READABLE, PerceptionToken()):
        boxes, unreadable = box_format.read(text)
        assert unreadable >= 0
        for place in boxes:
            assert len(place) in (2, 4)
            assert all(0 <= share <= 1 for share in place)
            assert len(place) == 2 or (place[0] <= place[2] and place[1] <= place[3])
        box_format.plain(text)


def test_objects_are_tokens_without_coordinates():
    box_format = PerceptionToken()
    assert box_format.needs_heads
    assert box_format.object_token == "<loc>"
    assert box_format.tokens == ("<loc>", "<obj_vis_s>", "<obj_vis_e>")
    text = box_format.write_boxes([(0, 0, 1, 1), (0, 0, 0.5, 1)])
    assert text == "<obj_vis_s><loc>;<loc><obj_vis_e>"
    assert box_format.read(text) == ([], 0)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Answer: <obj_vis_s><loc>;<loc><obj_vis_e> .", "Answer: <box> ."),
        ("<obj_vis_s><loc><obj_vis_e> or <obj_vis_s><obj_vis_e>", "<box> or <box>"),
        ("cut <obj_vis_s><loc>;", "cut <box>"),
        ("<obj_vis_s>words that follow", "<box>words that follow"),
        ("<obj_vis_s> <loc> ; <loc> <obj_vis_e>.", "<box>."),
        ("bare <loc>;<loc> and end<obj_vis_e>", "bare <box> and end"),
        ("nothing", "nothing"),
    ],
)
def test_plain_text_has_a_box_for_each_object(text, plain):
    assert PerceptionToken().plain(text) == plain


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("normalized_text", {"precision": 0}, "box_format normalized_text: precision must be from 1 to 6, not 0"),
        ("location_tokens", {"num_bins": 1}, "box_format location_tokens: num_bins must be at least 2, not 1"),
    ],
)
def test_invalid_options_are_refused(name, options, message):
    with pytest.raises(ConfigError) as error:
        BOX_FORMATS.find(name)(**options)
    assert str(error.value) == message


def test_every_format_is_tested():
    tested = {type(box_format) for box_format in (*READABLE, PerceptionToken())}
    assert tested == {BOX_FORMATS.find(name) for name in BOX_FORMATS.names()}
