"""Tests of DICOM series as volumes, compared with the same voxels in a NIfTI file, which nibabel orients."""

from __future__ import annotations

import json
from multiprocessing.connection import Pipe

import numpy as np
import pydicom
import pytest
from medical_files import write_dicom, write_nifti
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from mllm.dataset.readers import guarded, notices, read_images
from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.errors import ConfigError, DataError
from mllm.report.data.facts import row_key

SHAPE = (9, 12, 7)
"""Rows, columns and slices."""
PLANES = {
    "axial": ([1, 0, 0, 0, 1, 0], [0, 0, 1]),
    "feet first": ([1, 0, 0, 0, 1, 0], [0, 0, -1]),
    "prone": ([-1, 0, 0, 0, -1, 0], [0, 0, 1]),
    "coronal": ([1, 0, 0, 0, 0, -1], [0, 1, 0]),
    "sagittal": ([0, 1, 0, 0, 0, -1], [1, 0, 0]),
    "oblique": ([0.96, 0.28, 0, -0.28, 0.96, 0], [0, 0, 1]),
}
SERIES = generate_uid(entropy_srcs=["series"])


@pytest.fixture(scope="module")
def voxels():
    return np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)


def write_series(folder, voxels, plane="axial", *, step=2.0, sides=(1.0, 1.0), positions=None, **tags):
    """Write the slices [row, column, slice] in an order of names that is not that of their positions."""
    folder.mkdir(exist_ok=True)
    directions, normal = PLANES[plane]
    positions = step * np.arange(voxels.shape[2]) if positions is None else positions
    names = np.random.default_rng(1).permutation(len(positions))
    place = {"SeriesInstanceUID": SERIES, "ImageOrientationPatient": directions, "PixelSpacing": list(sides)}
    files = []
    for number, position in enumerate(positions):
        origin = (np.array([-5.0, 7.0, 3.0]) + position * np.array(normal)).tolist()
        scale = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}
        options = {**place, **scale, "ImagePositionPatient": origin, **tags}
        files.append(write_dicom(folder / f"{names[number]}.dcm", voxels[..., number % voxels.shape[2]], **options))
    return files


def write_same_nifti(path, voxels, plane, step=2.0, sides=(1.0, 1.0)):
    """Write the voxels [row, column, slice] with the affine of the series: columns first, LPS converted to RAS."""
    directions, normal = (np.array(part, float) for part in PLANES[plane])
    affine = np.eye(4)
    # The first number of PixelSpacing is the distance of rows.
    affine[:3, 0], affine[:3, 1] = directions[:3] * sides[1], directions[3:] * sides[0]
    affine[:3, 2], affine[:3, 3] = step * normal, [-5.0, 7.0, 3.0]
    return write_nifti(path, voxels.transpose(1, 0, 2), affine=np.diag([-1, -1, 1, 1]) @ affine)


def pictures(*args, **options):
    return [np.asarray(picture) for picture in read_images(*args, **options)]


@pytest.mark.parametrize("plane", PLANES)
def test_a_series_shows_what_the_same_nifti_volume_shows(tmp_path, voxels, plane):
    sides = (1.5, 0.75)
    files = write_series(tmp_path / "ct", voxels, plane, sides=sides)
    nifti = write_same_nifti(tmp_path / "ct.nii", voxels, plane, sides=sides)
    acquired = "axial" if plane in ("axial", "feet first", "prone", "oblique") else plane
    for axis in ("axial", "coronal", "sagittal"):
        for source in (tmp_path / "ct", files[::-1]):
            series = pictures(source, axis=axis, slice="all", window="soft tissue")
            volume = pictures(nifti, axis=axis, slice="all", window="soft tissue")
            assert all(np.array_equal(one, other) for one, other in zip(series, volume, strict=True)), axis
    assert np.array_equal(pictures(files)[0], pictures(files, axis=acquired, slice="middle")[0])


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_slices_of_the_acquisition_decode_their_files_only(tmp_path, voxels, plane):
    files = write_series(tmp_path / "ct", voxels, plane)
    expected = pictures(tmp_path / "ct", slice=[2, 4], window="ct_rgb")
    for number in (0, 1, 3, 5, 6):
        dataset = pydicom.dcmread(files[number])
        dataset.PixelData = bytes(len(dataset.PixelData))
        dataset.save_as(files[number])
    assert np.array_equal(pictures(tmp_path / "ct", slice=[2, 4], window="ct_rgb"), expected)
    assert expected[0].shape == (9, 12, 3) and (expected[0][..., 0] != expected[0][..., 2]).any()


def test_frames_of_an_enhanced_file_are_slices(tmp_path, voxels):
    write_series(tmp_path / "ct", voxels)
    groups = []
    for number in (3, 0, 6, 1, 5, 2, 4):
        place, direction, measures, outer = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-5, 7, 3 + 2 * number]
        direction.ImageOrientationPatient, measures.PixelSpacing = PLANES["axial"][0], [1, 1]
        outer.PlanePositionSequence, outer.PlaneOrientationSequence = [place], [direction]
        outer.PixelMeasuresSequence = [measures]
        groups.append(outer)
    frames = voxels.transpose(2, 0, 1)[[3, 0, 6, 1, 5, 2, 4]]
    tags = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0, "PerFrameFunctionalGroupsSequence": groups}
    enhanced = write_dicom(tmp_path / "enhanced.dcm", frames, **tags)
    for axis in ("axial", "sagittal"):
        assert np.array_equal(
            pictures([enhanced], axis=axis, slice="all"), pictures(tmp_path / "ct", axis=axis, slice="all")
        )


def test_all_slices_have_one_map_to_gray(tmp_path, voxels):
    def write(name, **tags):
        write_series(tmp_path / name, voxels, **tags)
        return tmp_path / name

    def to_8_bits(values, low, high):
        return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)

    window = {"WindowCenter": 100, "WindowWidth": 300, "VOILUTFunction": "LINEAR_EXACT"}
    for folder, low, high in (
        (write("a"), -1024, 1024),
        (write("b", **window), -50, 250),
        (write("c", Modality="MR"), *np.percentile(voxels, (0.5, 99.5))),
    ):
        assert np.array_equal(pictures(folder, slice=4)[0][..., 0], to_8_bits(voxels[..., 4], low, high)), folder
    file = pydicom.dcmread(next((tmp_path / "b").iterdir()))
    file.WindowCenter = 500
    file.save_as(next((tmp_path / "b").iterdir()))
    assert np.array_equal(pictures(tmp_path / "b", slice=4), pictures(tmp_path / "a", slice=4))
    inverted = pictures(write("d", photometric="MONOCHROME1", **window), slice=4)[0]
    assert np.abs(255 - inverted[..., 0] - to_8_bits(voxels[..., 4], -50, 250)).max() <= 1
    padded = pictures(write("e", PixelPaddingValue=int(voxels[0, 0, 4]), **window), slice=4)[0]
    assert padded[0, 0, 0] == 0 and np.array_equal(padded[1:, :, 0], to_8_bits(voxels[1:, :, 4], -50, 250))


def damaged(voxels, folder, kind):
    """Write a series that is no volume, and return its source and the end of the message."""
    if kind == "mixed":
        write_series(folder, voxels)
        write_dicom(folder / "scout.dcm", voxels[..., 0], SeriesInstanceUID="1.2.3", ImagePositionPatient=[0, 0, 0])
        return folder, "has slices of 2 series: select the files of one of them"
    if kind == "missing":
        write_series(folder, voxels[..., :6], positions=[0, 2, 4, 8, 10, 12])
        return folder, r"has 1 uneven distances between slices: slices are missing \(the first between \d.dcm and"
    if kind == "double":
        files = write_series(folder, voxels[..., :6], positions=[0, 2, 4, 4, 6, 8])
        return files, r"has 1 pairs of slices at one position, as copies or phases: keep one .*\(the first are \d.dcm"
    if kind == "size":
        files = write_series(folder, voxels[..., :4])
        files += write_series(folder.with_name("b"), voxels[:5, :, :1], positions=[8])
        return files, "has slices of different sizes"
    if kind == "direction":
        files = write_series(folder, voxels[..., :4])
        return files + write_series(folder.with_name("b"), voxels[..., :1], "coronal"), "slices that are not parallel"
    if kind == "position":
        files = write_series(folder, voxels[..., :2])
        dataset = pydicom.dcmread(files[1])
        del dataset.ImagePositionPatient
        dataset.save_as(files[1])
        return folder, "has no valid ImagePositionPatient: name the files"
    if kind == "color":
        color = np.zeros((9, 12, 3), np.uint8)
        tags = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": PLANES["axial"][0]}
        return [write_dicom(folder.with_name("c.dcm"), color, **tags)], "is in color or has another size"
    folder.mkdir()
    (folder / "note.txt").write_text("no slice")
    return folder, "is a folder without DICOM files; its subfolders are not searched"


@pytest.mark.parametrize(
    "kind", ["mixed", "missing", "double", "size", "direction", "position", "color", "other files"]
)
def test_files_that_are_no_volume_are_refused_in_a_sentence(tmp_path, voxels, kind):
    source, message = damaged(voxels, tmp_path / "ct", kind)
    with pytest.raises(DataError, match=message) as caught:
        read_images(source)
    assert "\n" not in str(caught.value) and caught.value.reason
    assert ".dcm" not in caught.value.reason and SERIES not in str(caught.value)


def test_rows_of_a_dataset_name_a_folder_or_the_files_of_a_series(tmp_path, voxels):
    files = write_series(tmp_path / "ct", voxels)
    names = [f"ct/{file.name}" for file in files]
    rows = [{"image": {"path": path, "slice": [1, 5], "window": "lung"}} for path in ("ct", names)]
    lines = [json.dumps({**row, "question": "Is there a nodule?", "answer": "no"}) + "\n" for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    dataset = VQADataset(tmp_path / "rows.jsonl")
    expected = pictures(files, slice=[1, 5], window="lung")
    for index in range(2):
        for sample in (dataset.sample(index), dataset.inspect(index)):
            assert sample.turns[0].text.count("<image>") == 2
            assert np.array_equal([np.asarray(image.convert("RGB")) for image in sample.images], expected)
    before = row_key(dataset.inspect(0)), row_key(dataset.inspect(1))
    write_dicom(files[3], voxels[:5, :, 0])
    assert row_key(dataset.inspect(0)) != before[0] and row_key(dataset.inspect(1)) != before[1]


def test_a_tilted_gantry_allows_acquired_slices_only(tmp_path, voxels):
    files = write_series(tmp_path / "ct", voxels)
    for number, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        dataset.ImagePositionPatient[1] += number
        dataset.save_as(file)
    assert len(read_images(tmp_path / "ct", slice="all")) == SHAPE[2]
    with pytest.raises(DataError, match="tilted gantry: only the acquired slices"):
        read_images(tmp_path / "ct", axis="coronal")


def test_options_of_a_series_are_checked(tmp_path, voxels):
    files = write_series(tmp_path / "ct", voxels[..., :2])
    with pytest.raises(ConfigError, match=r"unknown key 'frames' in reader \(DICOM series\); known are axis, slice"):
        read_images(files, frames=1)
    with pytest.raises(DataError, match="has no slice 2: it has 2, from 0 to 1"):
        read_images(files, slice=2)
    with pytest.raises(DataError, match=r"gone.dcm does not exist"):
        read_images([*files, tmp_path / "gone.dcm"])


def test_a_repeated_read_gives_the_same_images_and_warnings(tmp_path, voxels):
    tags = {"RescaleSlope": 0, "WindowCenter": 0, "WindowWidth": 10, "BurnedInAnnotation": "YES"}
    write_series(tmp_path / "ct", voxels, **tags)
    results = []
    for _ in range(2):
        with notices.collected() as kinds:
            results.append((pictures(tmp_path / "ct", slice=4)[0].tobytes(), kinds))
    assert results[0] == results[1] and results[0][1] == {"rescale", "text in the pixels"}


def test_a_large_reformatted_series_is_read_in_the_guarded_process(tmp_path, voxels, monkeypatch):
    write_series(tmp_path / "ct", voxels)
    expected = pictures(tmp_path / "ct", axis="coronal")
    monkeypatch.setattr("mllm.dataset.readers.series.CHEAP_BYTES", 10)
    assert np.array_equal(pictures(tmp_path / "ct", axis="coronal"), expected)


def test_each_slice_of_a_reformatted_series_starts_the_time_limit_again(tmp_path, voxels, monkeypatch):
    write_series(tmp_path / "ct", voxels)
    caller, process = Pipe()
    monkeypatch.setattr(guarded, "_to_caller", process)
    monkeypatch.setattr(guarded, "_PROGRESS_SECONDS", 0.0)
    pictures(tmp_path / "ct", axis="coronal")
    count = 0
    while caller.poll():
        assert caller.recv() == ("progress", None)
        count += 1
    assert count == 2 * SHAPE[2]  # its header, and its pixels
