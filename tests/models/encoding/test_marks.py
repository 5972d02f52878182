"""Marks in texts, tensors and frames, against an independent computation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm.errors import ConfigError, DataError
from mllm.models.encoding.box_formats import LocationTokens, NormalizedText, PerceptionToken
from mllm.models.encoding.marks import MarkWriter, clipped, resized_mask, tight_box
from mllm.structures import BOX, POINT, Frame, Mark, Sample, Turn

FORMATS = [NormalizedText(), LocationTokens()]


def picture(width, height, mode="RGB"):
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def scene(marks, text=BOX, groups=None, size=(40, 20), role="assistant"):
    groups = (tuple(range(len(marks))),) if groups is None else groups
    turns = [Turn("user", "<image> Where?"), Turn(role, text, groups)]
    return Sample(turns, [picture(*size)], marks=list(marks), source="F, line 2")


def disk(width, height, x, y, radius):
    rows, columns = np.mgrid[:height, :width]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


@st.composite
def boxed(draw):
    """Strategy of the size of an image and a box that may extend beyond it."""
    width, height = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    xs = sorted(draw(st.floats(-0.1, 1.1)) * width for _ in range(2))
    ys = sorted(draw(st.floats(-0.1, 1.1)) * height for _ in range(2))
    return (width, height), (xs[0], ys[0], xs[1], ys[1])


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("box_format", FORMATS, ids=lambda one: type(one).__name__)
@settings(max_examples=40, deadline=None)
@given(boxed(), st.floats(0, 1), st.floats(0, 1))
def test_boxes_in_any_image_are_read_back(box_format, pads, drawn, right, down):
    size, box = drawn
    point = (right * size[0], down * size[1])
    writer = MarkWriter(box_format, pad_to_square=pads)
    sample = Sample([Turn("assistant", f"{BOX}{POINT}", ((0,), (1,)))], marks=[Mark(box=box), Mark(point=point)])
    sample = replace(sample, images=[Image.new("1", size)])
    (frame,) = writer.frames(sample)
    (turn,), objects = writer.write(sample, sample.turns, [frame])
    assert objects == []
    (mark, pointed), unreadable = writer.read(turn.text, [frame])
    assert unreadable == 0
    reach = 0.5e-3 * (max(size) if pads else np.array([size[0], size[1]] * 2)) + 1e-6
    clipped = np.clip(box, 0, [size[0], size[1]] * 2)
    assert (np.abs(np.subtract(mark.box, clipped)) <= reach).all()
    assert (np.abs(np.subtract(pointed.point, point)) <= (reach if pads else reach[:2])).all()
    assert (np.array(mark.box) >= 0).all()
    assert (np.array(mark.box) <= [size[0], size[1]] * 2).all()


def test_images_are_centered_in_squares():
    wide, tall, square = picture(40, 20), picture(21, 40), picture(30, 30)
    sample = Sample([Turn("user", "<image>" * 3)], [wide, tall, square])
    writer = MarkWriter(pad_to_square=True, background=(10, 20, 30))
    framed, frames, objects = writer.prepare(sample)
    assert objects == []
    assert frames == (Frame(40, 20, 0, 10, 40, 40), Frame(21, 40, 9, 0, 40, 40), Frame(30, 30))
    assert [image.size for image in framed.images] == [(40, 40), (40, 40), (30, 30)]
    assert framed.images[2] is square
    first = np.asarray(framed.images[0])
    assert np.array_equal(first[10:30], np.asarray(wide))
    assert (first[:10] == (10, 20, 30)).all()
    assert (first[30:] == (10, 20, 30)).all()
    assert np.array_equal(np.asarray(framed.images[1])[:, 9:30], np.asarray(tall))
    # Sample and writer are unchanged.
    assert sample.images == [wide, tall, square]
    assert writer.with_background((1, 2, 3)).background == (1, 2, 3)
    assert writer.background == (10, 20, 30)


def test_without_squares_images_are_the_same_objects():
    sample = Sample([Turn("user", "<image>")], [picture(40, 20)])
    framed, frames, _ = MarkWriter().prepare(sample)
    assert framed.images[0] is sample.images[0]
    assert frames == (Frame(40, 20),)


@pytest.mark.parametrize("mode", ["L", "RGBA", "1"])
def test_gray_images_are_padded_too(mode):
    framed, _, _ = MarkWriter(pad_to_square=True, background=(9, 8, 7)).prepare(Sample([], [picture(6, 2, mode)]))
    assert framed.images[0].mode == "RGB"
    assert framed.images[0].getpixel((0, 0)) == (9, 8, 7)


def test_boxes_are_relative_to_the_square():
    sample = scene([Mark(box=(0, 0, 20, 20)), Mark(point=(40, 20))], f"{BOX} {POINT}", ((0,), (1,)))
    framed, _, _ = MarkWriter(pad_to_square=True).prepare(sample)
    assert framed.turns[1].text == "[0.000,0.250,0.500,0.750] [1.000,0.750]"
    framed, _, _ = MarkWriter().prepare(sample)
    assert framed.turns[1].text == "[0.000,0.000,0.500,1.000] [1.000,1.000]"
    assert framed.turns[0] is sample.turns[0] or framed.turns[0] == sample.turns[0]


def test_each_mark_is_relative_to_its_own_image():
    sample = scene([Mark(box=(0, 0, 10, 10)), Mark(box=(0, 0, 10, 10), image=1)])
    sample = replace(sample, images=[*sample.images, picture(100, 100)])
    assert MarkWriter().prepare(sample)[0].turns[1].text == "[0.000,0.000,0.250,0.500;0.000,0.000,0.100,0.100]"


def test_groups_refer_to_any_marks_in_any_order():
    marks = [Mark(box=(0, 0, 20, 20)), Mark(box=(20, 0, 40, 20))]
    sample = scene(marks, f"{BOX}, {BOX} and {BOX}{{}}", ((1, 0), (), (0,)))
    text = MarkWriter(NormalizedText(1)).prepare(sample)[0].turns[1].text
    assert text == "[0.5,0.0,1.0,1.0;0.0,0.0,0.5,1.0], [] and [0.0,0.0,0.5,1.0]{}"


def test_without_groups_placeholders_are_plain_text():
    sample = scene([Mark(box=(0, 0, 20, 20))], f"{BOX} {POINT} {{0}}", groups=())
    assert MarkWriter().prepare(sample)[0].turns[1].text == f"{BOX} {POINT} {{0}}"


def test_a_mask_is_written_as_the_box_around_it():
    mask = np.zeros((20, 40), bool)
    mask[5:10, 10:30] = True
    assert tight_box(Mark(mask=mask)) == (10, 5, 30, 10)
    assert tight_box(Mark(box=(0, 0, 1, 1), mask=mask)) == (0, 0, 1, 1)
    assert MarkWriter().prepare(scene([Mark(mask=mask)]))[0].turns[1].text == "[0.250,0.250,0.750,0.500]"
    # A mask without pixels means that there is no object.
    assert MarkWriter().prepare(scene([Mark(mask=mask & False)]))[0].turns[1].text == "[]"


@pytest.mark.parametrize(
    ("marks", "text", "groups", "box_format", "message"),
    [
        ([Mark(box=(0, 0, 1, 1))], BOX, ((0,), (0,)), None, "the text has 1 <box> and <point> placeholders for 2 "),
        ([Mark(box=(0, 0, 1, 1))], BOX * 2, ((0,),), None, "the text has 2 <box> and <point> placeholders for 1 "),
        ([Mark(box=(0, 0, 1, 1))], BOX, ((1,),), None, "the text refers to mark 1, but there are 1 ("),
        ([Mark(box=(0, 0, 1, 1))], BOX, ((-1,),), None, "the text refers to mark -1, but there are 1 ("),
        ([Mark(box=(0, 0, 1, 1), image=1)], BOX, ((0,),), None, "mark 0 is in image 1, but there are 1 (counted"),
        ([Mark(point=(0, 0))], BOX, ((0,),), None, "<box> refers to a mark without a box and a mask"),
        ([Mark(point=(0, 0))], BOX, ((0,),), PerceptionToken(), "<box> refers to a mark without a box and a mask"),
        ([Mark(box=(0, 0, 1, 1))], POINT, ((0,),), None, "<point> refers to a mark without a point"),
        (
            [Mark(point=(0, 0))],
            POINT,
            ((0,),),
            PerceptionToken(),
            "heads decode boxes and masks only, but the text has a ",
        ),
        ([Mark(mask=np.ones((40, 20), bool))], BOX, ((0,),), None, "the mask of mark 0 has the shape (40, 20), but "),
        ([Mark(box=(0, 0, float("nan"), 1))], BOX, ((0,),), None, "a mark has the coordinates (0, 0, nan, 1), which "),
    ],
)
def test_errors_name_the_row(marks, text, groups, box_format, message):
    with pytest.raises(DataError) as error:
        MarkWriter(box_format).prepare(scene(marks, text, groups))
    assert str(error.value).startswith(f"F, line 2: {message}")


def test_an_object_token_without_heads_is_refused():
    assert MarkWriter(PerceptionToken()).has_heads
    assert not MarkWriter(NormalizedText()).has_heads
    with pytest.raises(ConfigError, match="PerceptionToken needs heads"):
        MarkWriter(PerceptionToken(), has_heads=False)


def test_objects_become_tensors():
    mask = disk(40, 20, 10, 10, 6)
    marks = [Mark(box=(0, 0, 20, 20)), Mark(mask=mask), Mark(box=(20, 0, 40, 10), mask=mask)]
    sample = scene(marks, f"{BOX} and {BOX}", ((2,), (1,)))
    sample = replace(sample, turns=[Turn("user", f"<image> {BOX}?", ((0,),)), sample.turns[1]])
    writer = MarkWriter(PerceptionToken(), pad_to_square=True, has_heads=True, mask_size=8)
    framed, frames, objects = writer.prepare(sample)
    assert framed.turns[0].text == "<image> <obj_vis_s><loc><obj_vis_e>?"
    assert [(item.mark, item.supervised) for item in objects] == [
        (marks[0], False),
        (marks[2], True),
        (marks[1], True),
    ]
    student, targets = writer.tensors(objects, frames, torch.tensor([3, 8, 9]))
    assert student["object_positions"].tolist() == [3, 8, 9]
    tight = (4, 4, 17, 17)  # the disk: columns and rows 4 to 16
    expected = torch.tensor([(0, 0.25, 0.5, 0.75), (0.5, 0.25, 1, 0.5), frames[0].relative(*tight)])
    assert torch.allclose(student["object_boxes"], expected)
    assert student["object_boxes"].dtype == torch.float32
    assert student["object_has_box"].tolist() == [True] * 3
    assert student["object_has_mask"].tolist() == [False, True, True]
    assert student["object_images"].tolist() == [0, 0, 0]
    assert not student["object_masks"][0].any()
    assert torch.equal(student["object_masks"][1], resized_mask(mask, frames[0], 8))
    assert torch.equal(targets["boxes"], student["object_boxes"])
    assert torch.equal(targets["masks"], student["object_masks"])
    assert targets["boxes_known"].tolist() == [False, True, True]
    assert targets["masks_known"].tolist() == [False, True, True]


def test_a_batch_has_at_least_one_object_for_the_heads():
    student, targets = MarkWriter(PerceptionToken(), mask_size=4).tensors([], [], torch.tensor([], dtype=torch.long))
    shapes = {name: tuple(tensor.shape) for name, tensor in (student | targets).items()}
    assert shapes == {
        **dict.fromkeys(("object_positions", "object_has_box", "object_has_mask", "object_images"), (1,)),
        **dict.fromkeys(("object_boxes", "boxes"), (1, 4)),
        **dict.fromkeys(("object_masks", "masks"), (1, 4, 4)),
        **dict.fromkeys(("boxes_known", "masks_known"), (1,)),
    }
    assert student["object_positions"].tolist() == [-1]
    student, _ = MarkWriter(PerceptionToken()).tensors([], [], torch.tensor([], dtype=torch.long))
    assert sorted(student) == ["object_boxes", "object_has_box", "object_images", "object_positions"]
    assert MarkWriter().tensors([], [], torch.tensor([])) == ({}, {})


def test_an_empty_mask_is_a_target_of_a_mask_head():
    nothing = np.zeros((20, 40), bool)
    writer = MarkWriter(PerceptionToken(), mask_size=4)
    framed, frames, objects = writer.prepare(scene([Mark(mask=nothing)]))
    student, targets = writer.tensors(objects, frames, torch.tensor([5]))
    assert framed.turns[1].text == "<obj_vis_s><loc><obj_vis_e>"
    assert targets["masks_known"].tolist() == [True]
    assert targets["boxes_known"].tolist() == [False]
    assert not student["object_masks"].any()
    framed, _, objects = MarkWriter(PerceptionToken()).prepare(scene([Mark(mask=nothing)]))
    assert (framed.turns[1].text, objects) == ("<obj_vis_s><obj_vis_e>", [])


def test_a_resized_mask_covers_the_same_area():
    mask = disk(64, 32, 40, 16, 12)
    square = np.zeros((64, 64), float)
    square[16:48] = mask
    by_blocks = square.reshape(16, 4, 16, 4).mean(axis=(1, 3)) >= 0.5
    assert np.array_equal(resized_mask(mask, Frame(64, 32, 0, 16, 64, 64), 16), by_blocks)
    enlarged = resized_mask(mask, Frame(64, 32, 0, 16, 64, 64), 128)
    assert np.array_equal(enlarged, np.kron(square, np.ones((2, 2))) > 0)


def test_the_smallest_lesion_does_not_disappear():
    mask = np.zeros((2000, 2000), bool)
    mask[1999, 3] = True
    small = resized_mask(mask, Frame(2000, 2000), 16)
    assert small.nonzero().tolist() == [[15, 0]]
    assert not resized_mask(mask & False, Frame(2000, 2000), 16).any()


def test_read_locations_are_inside_the_image():
    frame = Frame(40, 20, 0, 10, 40, 40)
    (mark,), unreadable = MarkWriter().read("Answer: [0.0,0.0,1.0,0.5] [3,4,5]", [frame])
    assert (mark, unreadable) == (Mark(box=(0, 0, 40, 10)), 1)
    assert MarkWriter().read("[0.1,0.1,0.2,0.2]", []) == ((), 0)
    assert clipped(frame, (-3, 5, 41, 21)) == (0, 5, 40, 20)


def test_a_box_beyond_its_image_is_clipped_to_the_image_and_not_to_the_square():
    sample = scene([Mark(box=(-5, -5, 45, 25))])
    writer = MarkWriter(PerceptionToken(), pad_to_square=True)
    _, frames, objects = writer.prepare(sample)
    student, _ = writer.tensors(objects, frames, torch.tensor([4]))
    assert student["object_boxes"].tolist() == [[0, 0.25, 1, 0.75]]
    assert MarkWriter(pad_to_square=True).prepare(sample)[0].turns[1].text == "[0.000,0.250,1.000,0.750]"
