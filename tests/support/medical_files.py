"""Tiny medical files for tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mllm.dataset.phantoms.writers import write_avi, write_nifti
from mllm.dataset.readers import read_images

__all__ = ["pydicom_file", "read_gray", "write_avi", "write_dicom", "write_nifti", "write_png"]


def pydicom_file(name: str) -> str:
    """Return the path of a test file that is part of pydicom."""
    from pydicom.data import get_testdata_file

    path = get_testdata_file(name, download=False)
    assert path is not None, name
    return str(path)


def read_gray(path: str | Path, **options: Any) -> np.ndarray:
    """Read the first image of a file, whose channels must be equal, as [H, W] uint8."""
    pixels = np.asarray(read_images(path, **options)[0])
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def write_png(path: str | Path, pixels: np.ndarray) -> Path:
    """Write [H, W] uint8 or uint16, or [H, W, 3] or [H, W, 4] uint8, as a PNG file."""
    path = Path(path)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def write_dicom(
    path: str | Path,
    pixels: np.ndarray,
    *,
    photometric: str | None = None,
    syntax: str = "ExplicitVRLittleEndian",
    **tags: Any,
) -> Path:
    """Write pixels as a DICOM file.

    Shapes [H, W], [F, H, W], [H, W, 3] or [F, H, W, 3]; a last dimension of 3 is color. Gray may be (u)int8 or
    (u)int16, color uint8. `syntax` is a name of `pydicom.uid`: `ExplicitVRLittleEndian`, `RLELossless`,
    `JPEGLSLossless`, `JPEG2000Lossless`, or `JPEGBaseline8Bit` (written by Pillow; RGB becomes YBR_FULL_422, lossy).
    JPEG 2000 needs at least 32 pixels a side. `tags` are further elements by keyword (`Modality`, `WindowCenter`,
    `RescaleSlope`, `BitsStored`, `PatientName`, ...).
    """
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset

    color = pixels.shape[-1] == 3 and pixels.ndim >= 3
    transfer_syntax = uid.UID(vars(uid)[syntax])
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = uid.MultiFrameTrueColorSecondaryCaptureImageStorage if color else uid.CTImageStorage
    dataset.SOPInstanceUID = uid.generate_uid(entropy_srcs=[Path(path).name])
    dataset.Modality = "OT"
    frames = pixels if pixels.ndim == 3 + color else pixels[None]
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape[:3]
    dataset.SamplesPerPixel = 3 if color else 1
    dataset.PhotometricInterpretation = photometric or ("RGB" if color else "MONOCHROME2")
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = tags.pop("BitsStored", dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if color:
        dataset.PlanarConfiguration = 0
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    data = np.ascontiguousarray(frames).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    if transfer_syntax == uid.JPEGBaseline8Bit:
        _encapsulate_jpeg(dataset, frames)
    elif transfer_syntax.is_compressed:
        # GDCM, which pydicom would ask first for RLE, aborts the process at signed values.
        plugin = "pydicom" if transfer_syntax == uid.RLELossless else ""
        dataset.compress(transfer_syntax, encoding_plugin=plugin, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return Path(path)


def _encapsulate_jpeg(dataset: Any, frames: np.ndarray) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    streams = []
    for frame in frames:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, format="JPEG", quality=95)
        streams.append(stream.getvalue())
    dataset.PixelData = encapsulate(streams)
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    if dataset.SamplesPerPixel == 3:
        dataset.PhotometricInterpretation = "YBR_FULL_422"


SLICE = np.arange(-1000, 1000, 10, dtype=np.int16).reshape(10, 20)
"""Hounsfield units of a slice."""


def write_series(folder: Path, count: int = 4, uid: str = "1.2.3") -> list[Path]:
    """Write axial slices of a CT at distances of 5 mm, and return their files in the order of their positions."""
    folder.mkdir()
    scale = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0, "SeriesInstanceUID": uid}
    geometry = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1.0, 1.0]}
    for number in range(count):
        position = {"ImagePositionPatient": [0.0, 0.0, 5.0 * number], "PatientName": "Doe^Jane"}
        write_dicom(folder / f"{number}", SLICE + number, **scale, **geometry, **position)
    return sorted(folder.iterdir())
