"""Tests of windows by name, number, percentile and channel, and of the defaults of modalities."""

from __future__ import annotations

import numpy as np
import pytest
from medical_files import read_gray, write_dicom, write_nifti, write_png

from mllm.dataset.readers import read_images
from mllm.dataset.readers.windows import WINDOWS, find_window
from mllm.errors import ConfigError, DataError

HOUNSFIELD = np.arange(-1100, 1100, 2, dtype=np.int16)[:1024].reshape(32, 32)
CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}


def to_8_bits(values, low, high):
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


def test_windows_by_name_and_number():
    assert not find_window(None).is_chosen
    assert find_window("lung").limits == ((-1350, 150),)
    assert find_window("Soft tissue").limits == find_window("soft-tissue").limits == ((-150, 250),)
    assert find_window([40, 400]).limits == ((-160, 240),)
    assert find_window(("wide", (40, 350), "brain")).limits == find_window("ct_rgb").limits
    assert set(WINDOWS) >= {"lung", "soft_tissue", "bone", "brain", "mediastinum", "abdomen", "liver", "stroke"}


@pytest.mark.parametrize(
    "window, message",
    [
        ("lungs", "unknown window 'lungs': did you mean 'lung'"),
        ((40,), "must be a name, a pair"),
        (40, "must be a name, a pair"),
        ((40, 0), "width above 0"),
        ((40, float("nan")), "finite"),
        (("a", "b"), "must be a name, a pair"),
        (("lung", "brain"), "must be a name, a pair"),
        ((40, 400, 10), "must be a name, a pair"),
        (("lung", "brain", "bones"), "unknown window 'bones': did you mean 'bone'"),
        (("lung", "brain", "percentiles"), "one for each channel"),
        (("lung", "brain", (40, -1)), "width above 0"),
    ],
)
def test_invalid_windows(window, message):
    with pytest.raises(ConfigError, match=message):
        find_window(window)


@pytest.mark.parametrize("window", ["lung", "ct_rgb", ["lung", (40, 80), (40, 80)]])
def test_a_named_window_needs_hounsfield_units(tmp_path, window):
    with pytest.raises(ConfigError, match="Hounsfield"):
        read_images(write_png(tmp_path / "a.png", HOUNSFIELD.astype(np.uint8)), window=window)
    with pytest.raises(DataError, match="is not a CT in Hounsfield units"):
        read_images(write_dicom(tmp_path / "a.dcm", HOUNSFIELD, Modality="MR"), window=window)


def published_windows(slices):
    """Return the channels as in MedGemma's notebook `high_dimensional_ct_hugging_face.ipynb`."""

    def norm(values, low, high):
        clipped = np.clip(values.astype(np.float32), low, high)
        return (clipped - low) / (high - low) * 255.0

    return np.stack([norm(slices, *clip) for clip in [(-1024, 1024), (-135, 215), (0, 80)]], axis=-1)


def test_windows_of_channels_are_those_of_the_notebook_of_medgemma(tmp_path):
    expected = published_windows(HOUNSFIELD)
    picture = np.asarray(read_images(write_dicom(tmp_path / "a.dcm", HOUNSFIELD, **CT), window="ct_rgb")[0])
    assert np.abs(picture - expected).max() <= 0.5001
    assert len(np.unique(picture[..., 0])) > 200 and picture[..., 2].max() == 255
    volume = np.stack([HOUNSFIELD.T[::-1, ::-1]] * 2, axis=-1)
    picture = np.asarray(read_images(write_nifti(tmp_path / "a.nii", volume), window="ct_rgb")[0])
    assert np.abs(picture - expected).max() <= 0.5001


def test_a_ct_without_a_window_has_the_same_gray_values_in_all_slices(tmp_path):
    picture = read_gray(write_dicom(tmp_path / "a.dcm", HOUNSFIELD, **CT))
    assert np.array_equal(picture, to_8_bits(HOUNSFIELD, -1024, 1024))
    picture = read_gray(write_dicom(tmp_path / "b.dcm", HOUNSFIELD // 2, **CT))
    assert np.array_equal(picture, to_8_bits(HOUNSFIELD // 2, -1024, 1024))


def magnetic_resonance():
    values = np.random.default_rng(0).integers(0, 400, (64, 64)).astype(np.uint16)
    values[:2, :5] = 3000
    return values


def test_mr_without_a_window_is_shown_between_percentiles(tmp_path):
    values = magnetic_resonance()
    ends = np.percentile(values, (0.5, 99.5))
    assert ends[1] < 410
    assert np.array_equal(read_gray(write_dicom(tmp_path / "a.dcm", values, Modality="MR")), to_8_bits(values, *ends))
    tags = {"Modality": "MR", "WindowCenter": 1500, "WindowWidth": 3000, "VOILUTFunction": "LINEAR_EXACT"}
    assert np.array_equal(read_gray(write_dicom(tmp_path / "b.dcm", values, **tags)), to_8_bits(values, 0, 3000))
    tags = {"Modality": "MR", "PixelPaddingValue": 3000}
    padded = read_gray(write_dicom(tmp_path / "c.dcm", values, **tags))
    inside = values < 3000
    assert np.array_equal(padded, np.where(inside, to_8_bits(values, *np.percentile(values[inside], (0.5, 99.5))), 0))


def test_percentiles_can_be_chosen_for_every_gray_format(tmp_path):
    values = magnetic_resonance()
    expected = to_8_bits(values, *np.percentile(values, (0.5, 99.5)))
    for path in (
        write_png(tmp_path / "a.png", values),
        write_dicom(tmp_path / "a.dcm", values),
        write_nifti(tmp_path / "a.nii", values.T[::-1, ::-1, None].astype(np.int16)),
    ):
        assert np.array_equal(read_gray(path, window="percentiles"), expected), path
