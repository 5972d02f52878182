import re

import numpy as np
import pytest

from mllm.dataset.single_image_dataset.scenes import COLORS, LESIONS, SHAPES, PhantomBoxDataset, SceneDataset
from mllm.errors import ConfigError
from mllm.structures import BOX

SIZE = 96


def test_the_mask_has_the_color_and_the_shape_in_the_question():
    scenes = SceneDataset(size=40, seed=1, image_size=SIZE)
    for i in range(len(scenes)):
        sample = scenes.sample(i)
        color, shape = re.search(rf"the ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b", sample.turns[0].text).groups()
        mark = sample.marks[0]
        pixels = np.asarray(sample.images[0], float) / 255
        assert np.abs(np.median(pixels[mark.mask], axis=0) - COLORS[color]).max() < 0.05
        x1, y1, x2, y2 = mark.box
        # Fraction of its box that a shape covers: pi / 4, 1 and 1 / 2; edges are rounded to pixels.
        share = mark.mask.sum() / ((x2 - x1) * (y2 - y1))
        assert share == pytest.approx({"circle": np.pi / 4, "square": 1, "triangle": 0.5}[shape], abs=0.08)


def test_boxes_are_tight_around_their_masks():
    for dataset in (SceneDataset(8, image_size=SIZE), PhantomBoxDataset(8, image_size=SIZE, lesions=(1, 3))):
        for i in range(len(dataset)):
            for mark in dataset.sample(i).marks:
                rows, columns = np.nonzero(mark.mask)
                assert mark.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_a_sample_depends_on_seed_and_index_and_its_phrasing_on_the_epoch():
    first, same, other = (SceneDataset(12, seed=seed, image_size=SIZE) for seed in (1, 1, 2))
    for i in range(12):
        a, b, c, later = first.sample(i), same.sample(i), other.sample(i), first.sample(i, epoch=1)
        assert a.turns == b.turns and np.array_equal(a.images[0], b.images[0])
        assert not np.array_equal(a.images[0], c.images[0])
        assert np.array_equal(a.images[0], later.images[0]) and a.marks[0].box == later.marks[0].box
    assert any(first.sample(i).turns[0] != first.sample(i, epoch=1).turns[0] for i in range(12))


def test_a_named_answer_contains_color_and_shape():
    plain, named = (SceneDataset(20, seed=3, image_size=SIZE, named=named) for named in (False, True))
    for i in range(20):
        first, second = plain.sample(i), named.sample(i)
        color, shape = re.search(r"the (\w+) (circle|square|triangle)", second.turns[0].text).groups()
        assert first.turns[0] == second.turns[0] and np.array_equal(first.marks[0].mask, second.marks[0].mask)
        assert first.turns[1].text == f"Answer: {BOX} ."
        assert second.turns[1].text == f"The {shape} in {color}: {BOX} ." and second.turns[1].marks == ((0,),)


def test_phantoms_without_a_lesion_have_the_answer_none():
    for i, most in enumerate((0, 2)):
        sample = PhantomBoxDataset(4, seed=i, image_size=SIZE, lesions=(most, most)).sample(2)
        assert len(sample.marks) <= most
        assert sample.turns[1].text == (f"Answer: {BOX} ." if sample.marks else "Answer: none.")
        assert sample.turns[1].marks == ((tuple(range(len(sample.marks))),) if sample.marks else ())
    assert len(set(LESIONS)) == len(LESIONS)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (SceneDataset, dict(objects=7), "objects"),
        (SceneDataset, dict(size=0), "size"),
        (SceneDataset, dict(image_size=8), "image_size"),
        (PhantomBoxDataset, dict(modalities=["CTT"]), "CTT"),
        (PhantomBoxDataset, dict(lesions=(2, 1)), "lesions"),
    ],
)
def test_invalid_options_are_refused(kind, values, message):
    with pytest.raises(ConfigError, match=message):
        kind(**values)
