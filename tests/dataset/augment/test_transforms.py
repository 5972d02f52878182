"""Tests of transforms of images and marks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm.dataset.augment.geometric import (
    PadToSquare,
    RandomFlip,
    RandomResizedCrop,
    RandomRotate90,
    RandomRotation,
    Resize,
)
from mllm.dataset.augment.photometric import ColorJitter, GaussianNoise
from mllm.dataset.augment.transforms import apply_transforms, build_transforms
from mllm.errors import ConfigError
from mllm.registry import TRANSFORMS
from mllm.structures import Mark, Sample, Turn

EXACT = [
    RandomFlip(probability=1),
    RandomFlip(probability=0.5),
    RandomFlip("vertical", probability=1),
    RandomRotate90(),
    PadToSquare(),
    ColorJitter(brightness=0.2, contrast=0.2),
    GaussianNoise(std=3),
]
WITHIN_A_PIXEL = [
    Resize(40),
    Resize((70, 23)),
    RandomResizedCrop(),
    RandomResizedCrop(size=(64, 48), scale=(0.2, 0.6), ratio=(0.5, 2)),
    RandomRotation(degrees=180),
    RandomRotation(degrees=10),
]


def painted_scene(width, height, x1, y1, x2, y2):
    """Return a black image with a white box, and the box."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y1:y2, x1:x2] = 255
    return Image.fromarray(pixels), (float(x1), float(y1), float(x2), float(y2))


@st.composite
def scenes(draw):
    """Draw an image with a painted box, and the box."""
    width, height = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    x1, y1 = draw(st.integers(0, width - 3)), draw(st.integers(0, height - 3))
    x2, y2 = draw(st.integers(x1 + 2, width)), draw(st.integers(y1 + 2, height))
    return painted_scene(width, height, x1, y1, x2, y2)


def painted(mask):
    """Return the bounding box of a mask [H, W]."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def bright(image):
    return np.asarray(image)[..., 0] > 127


@pytest.mark.parametrize("transform", EXACT, ids=repr)
@settings(max_examples=40, deadline=None)
@given(scene=scenes(), seed=st.integers(0, 2**32))
def test_boxes_and_masks_follow_exactly(transform, scene, seed):
    image, box = scene
    marks = [Mark(box=box), Mark(mask=bright(image))]
    moved, (by_box, by_mask) = transform(image, marks, np.random.default_rng(seed))
    assert np.array_equal(bright(moved), by_mask.mask)
    assert by_box.box == painted(by_mask.mask)
    assert by_box.mask is None
    assert by_mask.box is None


@pytest.mark.parametrize("transform", WITHIN_A_PIXEL, ids=repr)
@settings(max_examples=60, deadline=None)
@given(scene=scenes(), seed=st.integers(0, 2**32))
def test_boxes_follow_within_a_pixel(transform, scene, seed):
    image, box = scene
    # A canvas at least as fine as the image, so that the painted box does not fall between two pixels.
    image = image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST)
    box = tuple(4 * end for end in box)
    moved, (mark, both) = transform(image, [Mark(box=box), Mark(box, bright(image))], np.random.default_rng(seed))
    width, height = moved.size
    assert both.mask.shape == (height, width)
    assert 0 <= mark.box[0] < mark.box[2] <= width
    assert 0 <= mark.box[1] < mark.box[3] <= height
    if both.mask.any():
        # The corner of a rotated box is thinner than a pixel: its last two pixels may contain no pixel center.
        reach = 2.5 if isinstance(transform, RandomRotation) else 1.0
        assert np.abs(np.subtract(mark.box, painted(both.mask))).max() <= reach
        assert np.abs(np.subtract(both.box, painted(both.mask))).max() <= 1.0


@pytest.mark.parametrize("transform", [*EXACT, *WITHIN_A_PIXEL], ids=repr)
@settings(max_examples=15, deadline=None)
@given(scene=scenes(), seed=st.integers(0, 2**32))
@example(scene=painted_scene(8, 56, 0, 50, 2, 52), seed=0)  # less than a pixel high after Resize((70, 23))
def test_points_move_like_boxes(transform, scene, seed):
    """A point moves like a box without extent, and like the pixels around it."""
    image, box = scene
    image = image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST)
    box = tuple(4 * end for end in box)
    point = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    marks = [Mark(point=point), Mark(box=(*point, *point)), Mark(box=box, mask=bright(image), point=box[:2])]
    moved, (as_point, as_box, both) = transform(image, marks, np.random.default_rng(seed))
    assert as_box.box == pytest.approx((*as_point.point, *as_point.point))
    x, y = as_point.point
    if min(both.box[2] - both.box[0], both.box[3] - both.box[1]) >= 2:
        # A side below two pixels may cover no pixel center; the pixels are then mixed with the background.
        assert bright(moved)[min(int(y), moved.height - 1), min(int(x), moved.width - 1)]
    assert 0 <= both.point[0] <= moved.width
    assert 0 <= both.point[1] <= moved.height


@settings(max_examples=60, deadline=None)
@given(x=st.floats(0, 50), y=st.floats(0, 30), seed=st.integers(0, 2**32))
def test_a_crop_never_loses_a_point(x, y, seed):
    image = Image.new("RGB", (50, 30))
    near = [Mark(point=(x, y)), Mark(point=(max(x - 1e-3, 0), max(y - 1e-3, 0)))]
    crop = RandomResizedCrop(scale=(0.05, 0.3), ratio=(0.5, 2))
    _, (mark, other) = crop(image, near, np.random.default_rng(seed))
    # Points that were clipped to the edge would be equal.
    assert (x < 1e-3 or mark.point[0] > other.point[0]) and (y < 1e-3 or mark.point[1] > other.point[1])


@settings(max_examples=60, deadline=None)
@given(scene=scenes(), seed=st.integers(0, 2**32), low=st.floats(0.05, 0.9))
def test_a_crop_never_cuts_a_mark(scene, seed, low):
    image, box = scene
    crop = RandomResizedCrop(size=None, scale=(low, 1.0), ratio=(0.5, 2.0))
    _, (mark,) = crop(image, [Mark(box=box)], np.random.default_rng(seed))
    # A box that was cut would be narrower than the scale of the crop requires.
    assert mark.box[2] - mark.box[0] >= box[2] - box[0] - 1e-6
    assert mark.box[3] - mark.box[1] >= box[3] - box[1] - 1e-6


@settings(max_examples=60, deadline=None)
@given(scene=scenes(), seed=st.integers(0, 2**32))
def test_a_rotation_loses_no_corner(scene, seed):
    image, _ = scene
    white = Image.new("RGB", image.size, "white")
    moved, (mark,) = RandomRotation(180)(white, [Mark(box=(0, 0, *image.size))], np.random.default_rng(seed))
    area = bright(moved).sum()
    assert abs(area - image.width * image.height) <= 2 * (image.width + image.height)
    assert mark.box[2] - mark.box[0] <= moved.width
    assert moved.width - 1 <= mark.box[2] - mark.box[0] + 1e-6


def test_against_pillow():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    rng = np.random.default_rng(0)
    flipped, _ = RandomFlip(probability=1)(image, [], rng)
    assert np.array_equal(flipped, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    flipped, _ = RandomFlip("vertical", 1)(image, [], rng)
    assert np.array_equal(flipped, image.transpose(Image.Transpose.FLIP_TOP_BOTTOM))
    turns = {np.asarray(RandomRotate90()(image, [], rng)[0]).tobytes() for _ in range(60)}
    assert turns == {np.rot90(np.asarray(image), k).tobytes() for k in range(4)}
    padded, (mark,) = PadToSquare()(image, [Mark(box=(0, 0, 7, 5))], rng)
    assert padded.size == (7, 7)
    assert mark.box == (0, 1, 7, 6)
    assert np.array_equal(np.asarray(padded)[1:6], np.asarray(image))
    assert not np.asarray(padded)[0].any()
    turned, _ = RandomRotation(0)(image, [], rng)
    assert np.array_equal(turned, image)


def test_gray_stays_gray_and_is_resized_like_color():
    gray = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8))
    small, _ = Resize(16)(gray, [], np.random.default_rng(0))
    assert small.mode == "L"
    assert np.array_equal(small.convert("RGB"), Resize(16)(gray.convert("RGB"), [], np.random.default_rng(0))[0])
    for transform in (*EXACT, *WITHIN_A_PIXEL):
        assert transform(gray, [], np.random.default_rng(0))[0].mode == "L"


def test_statistics_of_noise_and_jitter():
    image = Image.new("RGB", (100, 100), (128, 128, 128))
    noisy = np.asarray(GaussianNoise(std=8)(image, [], np.random.default_rng(0))[0]).astype(float)
    assert abs(noisy.std() - 8) < 0.3
    assert abs(noisy.mean() - 128) < 0.3
    assert (noisy == noisy[..., :1]).all()
    levels = [
        np.asarray(ColorJitter(brightness=0.5)(image, [], np.random.default_rng(seed))[0]).mean() for seed in range(80)
    ]
    assert 64 <= min(levels) < 75
    assert 181 < max(levels) <= 192
    assert np.array_equal(ColorJitter()(image, [], np.random.default_rng(0))[0], image)


def test_a_crop_without_marks_has_an_area_in_its_range():
    image = Image.new("RGB", (200, 100))
    box = (0, 0, 200, 100)
    for seed in range(20):
        crop = RandomResizedCrop(scale=(0.25, 0.25), ratio=(1, 1))
        moved, _ = crop(image, [], np.random.default_rng(seed))
        assert moved.size == image.size
    _, (mark,) = crop(image, [Mark(box=box)], np.random.default_rng(0))
    assert mark.box == box


def sample(marks=(), sizes=((20, 30), (20, 30))):
    rng = np.random.default_rng(5)
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    return Sample(turns=[Turn("user", "<image><image>")], images=images, marks=list(marks))


def test_the_sample_depends_on_the_seed():
    transforms = [RandomFlip(), RandomRotation(20), RandomResizedCrop(), ColorJitter(0.3, 0.3), GaussianNoise(4)]
    first, again, other = (apply_transforms(sample(), transforms, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(one, two) for one, two in zip(first.images, again.images, strict=True))
    assert first.images[0].size != other.images[0].size or not np.array_equal(first.images[0], other.images[0])


def test_all_images_move_equally_and_have_different_noise():
    twin = sample().images[0]
    scene = Sample(turns=[], images=[twin, twin.copy()], marks=[Mark(box=(2, 3, 9, 8))])
    for seed in range(10):
        moved = apply_transforms(
            scene, [RandomFlip(), RandomResizedCrop(scale=(0.3, 0.9))], np.random.default_rng(seed)
        )
        assert np.array_equal(*moved.images)
        assert len(moved.marks) == 1
    noisy = apply_transforms(scene, [GaussianNoise(5)], np.random.default_rng(0))
    assert not np.array_equal(*noisy.images)


def test_images_of_other_sizes_keep_their_size():
    scene = sample([Mark(box=(0, 0, 30, 20))], sizes=((20, 30), (50, 10)))
    moved = apply_transforms(scene, [RandomFlip(), RandomResizedCrop(), RandomRotate90()], np.random.default_rng(0))
    assert sorted(moved.images[1].size) == [10, 50]


@pytest.mark.parametrize("sizes", [((40, 60), (40, 60)), ((40, 60), (64, 32)), ((64, 32), (40, 60), (40, 60))])
@pytest.mark.parametrize("transform", [*EXACT, *WITHIN_A_PIXEL], ids=repr)
def test_every_mark_moves_with_its_own_image(transform, sizes):
    images, marks = [], []
    for number, (height, width) in enumerate(sizes):
        pixels = np.zeros((height, width, 3), np.uint8)
        box = (4 + 8 * number, 6 + 4 * number, 20 + 8 * number, 22)
        pixels[box[1] : box[3], box[0] : box[2]] = 255
        images.append(Image.fromarray(pixels))
        marks.append(Mark(tuple(map(float, box)), bright(images[-1]), image=number))
    scene = Sample([], images, marks=[marks[-1], *marks[:-1]])
    for seed in range(6):
        moved = apply_transforms(scene, [transform], np.random.default_rng(seed))
        assert [mark.image for mark in moved.marks] == [mark.image for mark in scene.marks]
        for mark in moved.marks:
            visible = bright(moved.images[mark.image])
            assert mark.mask.shape == visible.shape
            assert np.abs(np.subtract(mark.box, painted(visible))).max() <= 1.5
            assert (mark.mask & visible).sum() > 0.8 * (mark.mask | visible).sum()
            enlarged = (mark.box[2] - mark.box[0]) * (mark.box[3] - mark.box[1]) / visible.size
            assert enlarged > 0.01
        same = [image.size for image in images]
        assert all(
            moved.images[i].size == moved.images[j].size
            for i in range(len(images))
            for j in range(i)
            if same[i] == same[j]
        )


def test_a_crop_contains_the_marks_of_all_aligned_images():
    """The marks lie in opposite corners of the two images: nothing can be cut off."""
    marks = [Mark(box=(0, 0, 3, 3)), Mark(point=(29.5, 19.5), image=1)]
    crop = RandomResizedCrop(scale=(0.05, 0.1))
    for seed in range(5):
        moved = apply_transforms(sample(marks), [crop], np.random.default_rng(seed))
        assert moved.marks == marks
        assert all(np.array_equal(*pair) for pair in zip(moved.images, sample().images, strict=True))


def test_a_mark_of_an_absent_image_is_unchanged():
    """A mark of an absent image is refused when the sample is encoded, with its row."""
    scene = sample([Mark(box=(0, 0, 3, 3), image=2), Mark(box=(0, 0, 3, 3), image=-1)])
    assert apply_transforms(scene, [RandomFlip(probability=1)], np.random.default_rng(0)).marks == scene.marks


def test_a_transform_that_loses_marks_is_refused():
    class Forgetful:
        def __call__(self, image, marks, rng):
            return image, marks[:-1]

    with pytest.raises(ConfigError, match="transform Forgetful must return all 1 marks, in order"):
        apply_transforms(sample([Mark(box=(0, 0, 3, 3))]), [Forgetful()], np.random.default_rng(0))


def test_without_transforms_or_images_the_sample_is_returned():
    scene = sample()
    assert apply_transforms(scene, [], np.random.default_rng(0)) is scene
    text = Sample(turns=[Turn("user", "hello")])
    assert apply_transforms(text, [RandomFlip()], np.random.default_rng(0)) is text


def test_build_transforms():
    built = build_transforms([dict(type="RandomFlip", direction="vertical"), dict(type="Resize", size=[32, 16])])
    assert built == [RandomFlip("vertical"), Resize([32, 16])]
    assert built[1](Image.new("RGB", (5, 5)), [], np.random.default_rng(0))[0].size == (32, 16)


@pytest.mark.parametrize(
    "option, message",
    [
        (dict(type="RandomFlop"), "unknown type 'RandomFlop' in registry transforms: did you mean 'RandomFlip'"),
        (
            dict(type="RandomFlip", probabilty=1),
            r"unknown key 'probabilty' in transforms \(RandomFlip\): did you mean 'probability'",
        ),
        (dict(type="RandomFlip", probability=2), r"transforms \(RandomFlip\): probability=2 must be from 0 to 1"),
        (dict(type="RandomFlip", direction="up"), r"transforms \(RandomFlip\): direction='up' must be"),
        (dict(type="RandomRotation"), r"transforms \(RandomRotation\) needs the key 'degrees'"),
        (dict(type="RandomRotation", degrees="ten"), "transforms.degrees must be a number, not 'ten'"),
        (dict(type="RandomResizedCrop", scale=(0.9, 0.1)), r"transforms \(RandomResizedCrop\): scale"),
        (
            dict(type="RandomResizedCrop", ratio=2),
            r"transforms \(RandomResizedCrop\): ratio=2 must be two ascending",
        ),
        (dict(type="Resize", size=0), r"transforms \(Resize\): size=0 must be"),
        (dict(type="GaussianNoise", std=-1), r"transforms \(GaussianNoise\): std=-1 must be"),
        (dict(typ="RandomFlip"), "transforms must be a dict with a 'type', not {'typ': 'RandomFlip'}"),
    ],
)
def test_invalid_transforms(option, message):
    with pytest.raises(ConfigError, match=message):
        build_transforms([option])


def test_every_transform_is_tested_here():
    tested = {type(transform).__name__ for transform in (*EXACT, *WITHIN_A_PIXEL)}
    assert tested == set(TRANSFORMS.locations)
    assert math.isclose(RandomResizedCrop().scale[0], 0.8)


@pytest.mark.parametrize(
    "transform, spacing, expected",
    [
        (Resize((30, 80)), (0.5, 0.5), (1.0, 0.25)),
        (PadToSquare(), (0.5, 0.5), (0.5, 0.5)),
        (RandomRotate90(), (0.5, 0.5), (0.5, 0.5)),
        (RandomRotate90(), (0.5, 0.7), None),
        (GaussianNoise(std=1), (0.5, 0.7), (0.5, 0.7)),
        (RandomResizedCrop(), (0.5, 0.5), None),
        (lambda image, marks, rng: (image, marks), (0.5, 0.5), None),
    ],
)
def test_the_pixel_spacing_follows_the_image_or_is_unknown(transform, spacing, expected):
    images = [Image.new("RGB", (60, 40)), Image.new("RGB", (60, 40))]
    sample = Sample([Turn("user", "?")], images, spacings=(spacing, None))
    assert apply_transforms(sample, [transform], np.random.default_rng(0)).spacings == (expected, None)
