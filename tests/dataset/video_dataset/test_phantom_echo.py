"""Tests of generated echocardiograms."""

import numpy as np
import pytest
from echo_files import LABELS, Echo, Probe, draw_heart

from mllm.config.schema import DataArgs
from mllm.dataset.builder import build_dataset, build_datasets
from mllm.errors import ConfigError


def open_dataset(**options):
    return build_dataset(dict(type="PhantomEchoDataset", **options))


def test_a_patient_is_a_function_of_seed_and_index():
    dataset, again, other = open_dataset(size=3), open_dataset(size=9), open_dataset(size=3, seed=1)
    for index in range(3):
        one, two = dataset.sample(index), again.sample(index)
        assert one.measures == two.measures == dataset.measures(index) != other.measures(index)
        assert [image.tobytes() for image in one.images] == [image.tobytes() for image in two.images]
        assert one.views == ["ED", "ES"] and one.group == two.group != other.sample(index).group
        assert one.measures["EF"] == pytest.approx(100 * (1 - one.measures["ESV"] / one.measures["EDV"]))
    assert dataset.sample(-1).measures == dataset.sample(2).measures
    with pytest.raises(IndexError):
        dataset.sample(3)


def test_the_images_show_the_two_phases():
    """The images are dark inside the cavity of the true masks."""
    dataset = open_dataset(size=3, image_size=160, depth=(150, 150))
    for index in range(3):
        heart = draw_heart(np.random.default_rng((0, index)))
        echo = Echo(heart, Probe(160, 150.0), np.random.default_rng(0))
        sample = dataset.sample(index)
        for image, phase in zip(sample.images, (0, 1), strict=True):
            assert image.size == (160, 160)
            picture, mask = np.asarray(image, float)[..., 0], echo.mask(phase)
            assert picture[mask == LABELS["myocardium"]].mean() > picture[mask == LABELS["cavity"]].mean() + 50


def test_splits_share_no_patient():
    split = dict(type="PhantomEchoDataset", size=4)
    splits = build_datasets(DataArgs(train=split, validation=split, test=split), seed=7)
    assert [dataset.seed for dataset in splits.values()] == [0, 1, 2]
    assert len({dataset.group(index) for dataset in splits.values() for index in range(4)}) == 12


@pytest.mark.parametrize("options", [dict(size=0), dict(image_size=32), dict(depth=(160, 150)), dict(depth=(9, 99))])
def test_invalid_options_are_refused(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be"):
        open_dataset(**options)
