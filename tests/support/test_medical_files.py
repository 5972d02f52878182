from __future__ import annotations

import av
import nibabel
import numpy as np
import pydicom
import pytest
from medical_files import write_avi, write_dicom, write_nifti, write_png
from PIL import Image


@pytest.mark.parametrize(
    "shape, dtype", [((5, 6), np.uint8), ((5, 6), np.uint16), ((5, 6, 3), np.uint8), ((5, 6, 4), np.uint8)]
)
def test_png(tmp_path, shape, dtype):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)
    with Image.open(write_png(tmp_path / "a.png", pixels)) as image:
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("syntax", ["ExplicitVRLittleEndian", "RLELossless", "JPEGLSLossless", "JPEG2000Lossless"])
@pytest.mark.parametrize(
    "shape, dtype", [((32, 40), np.uint8), ((3, 32, 40), np.int16), ((32, 40, 3), np.uint8), ((2, 33, 35, 3), np.uint8)]
)
def test_dicom_files_contain_their_pixels(tmp_path, syntax, shape, dtype):
    info = np.iinfo(dtype)
    pixels = np.random.default_rng(0).integers(info.min, info.max, shape, dtype=dtype)
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", pixels, syntax=syntax, PatientID="7", WindowCenter=4))
    assert dataset.file_meta.TransferSyntaxUID == vars(pydicom.uid)[syntax]
    assert np.array_equal(dataset.pixel_array, pixels)
    assert dataset.PatientID == "7"
    assert dataset.WindowCenter == 4


def test_dicom_as_jpeg(tmp_path):
    smooth = np.stack(np.broadcast_arrays(*np.ogrid[0:255:32j, 0:255:32j], 90), axis=-1).astype(np.uint8)
    dataset = pydicom.dcmread(write_dicom(tmp_path / "c.dcm", np.stack([smooth] * 2), syntax="JPEGBaseline8Bit"))
    assert dataset.NumberOfFrames == 2
    gray = pydicom.dcmread(write_dicom(tmp_path / "g.dcm", smooth[..., 0], syntax="JPEGBaseline8Bit"))
    assert gray.PhotometricInterpretation == "MONOCHROME2"
    assert np.abs(gray.pixel_array.astype(int) - smooth[..., 0]).max() < 6


def test_nifti(tmp_path):
    volume = np.random.default_rng(0).integers(0, 9, (2, 3, 4, 5)).astype(np.int16)
    image = nibabel.load(write_nifti(tmp_path / "a.nii.gz", volume, spacing=(1, 2, 3)))
    assert np.array_equal(image.dataobj, volume)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_zooms()[:3] == (1, 2, 3)


@pytest.mark.parametrize("codec, worst", [("ffv1", 0), ("mjpeg", 20), ("mpeg4", 20)])
def test_avi(tmp_path, codec, worst):
    ramp = np.broadcast_to(np.linspace(0, 200, 64)[None, :, None], (48, 64, 3))
    frames = [(ramp + number).astype(np.uint8) for number in range(12)]
    with av.open(str(write_avi(tmp_path / "a.avi", frames, codec, fps=20))) as container:
        assert container.streams.video[0].average_rate == 20
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 12
    assert np.abs(np.stack(decoded).astype(int) - np.stack(frames)).max() <= worst
