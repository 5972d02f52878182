"""Comparison of the DICOM reader with another decoding, over all test files of pydicom and of the shared data."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, get_decoder, pixel_array
from pydicom.uid import RLELossless

from mllm.dataset.readers.dicom import read
from mllm.errors import UserError

ROOT = Path(pydicom.data.__file__).parent / "test_files"
SHARED = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "dicom"
REFUSED = {
    "JPEG-lossy.dcm": "JPEG pixels of 12 bits",
    "JPGExtended.dcm": "JPEG pixels of 12 bits",
    "JPEG2000-embedded-sequence-delimiter.dcm": "are truncated, damaged",
    "MR_truncated.dcm": "are truncated, damaged",
    "badVR.dcm": "header or its pixels are damaged",
    "meta_missing_tsyntax.dcm": "header or its pixels are damaged",
    "nested_priv_SQ.dcm": "header or its pixels are damaged",
    **dict.fromkeys(("UN_sequence.dcm", "empty_charset_LEI.dcm", "no_meta_group_length.dcm"), "pixels are incomplete"),
    "priv_SQ.dcm": "pixels are incomplete",
    **dict.fromkeys(("reportsi.dcm", "reportsi_with_empty_number_tags.dcm", "test-SR.dcm"), "has no pixels"),
    **dict.fromkeys(("rtplan.dcm", "rtplan_truncated.dcm", "waveform_ecg.dcm", "rtstruct.dcm"), "has no pixels"),
    **dict.fromkeys(("ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm"), "has no pixels"),
    "no_meta.dcm": "is not a DICOM file",
}
"""Files that are refused, and the reason: they have no pixels, or pydicom does not decode them either."""
NOT_DICOM = {"README.txt", "README", "crayons.icc", "rtplan.dump", "rtstruct.dump", "test1.json", "test_PN.json"}
NOT_DICOM |= {"zipMR.gz"}


def expected_picture(path: Path) -> np.ndarray:
    """Return the first frame, [H, W, 3] uint8, decoded by GDCM where pydicom can use it, and transformed by pydicom."""
    dataset = pydicom.dcmread(path)
    syntax = dataset.file_meta.TransferSyntaxUID
    is_gdcm = syntax.is_encapsulated and syntax != RLELossless and "gdcm" in get_decoder(syntax).available_plugins
    values = pixel_array(dataset, index=0, decoding_plugin="gdcm" if is_gdcm else "")
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return np.rint(apply_color_lut(values, dataset) / 257).astype(np.uint8)
    if values.ndim == 3:
        return np.rint(values / (2**dataset.BitsStored - 1) * 255).astype(np.uint8)
    values = apply_modality_lut(values, dataset)
    low, high = values.min(), values.max()
    if dataset.get("Modality") == "CT" and "RescaleSlope" in dataset:
        low, high = -1024, 1024
    elif dataset.get("Modality") == "MR":
        low, high = np.percentile(values, (0.5, 99.5))
    if "WindowWidth" in dataset and "WindowCenter" in dataset:
        bits, signed = dataset.BitsStored, dataset.PixelRepresentation
        ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1], float)
        low, high = ends * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
        values = apply_voi_lut(values, dataset)
    gray = np.rint(np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)
    gray = 255 - gray if dataset.PhotometricInterpretation == "MONOCHROME1" else gray
    return np.repeat(gray[..., None], 3, axis=2)


@pytest.mark.filterwarnings("ignore")
def test_every_file_is_decoded_as_by_another_library_or_refused_for_a_known_reason():
    compared, wrong = 0, []
    for path in [*sorted(file for file in ROOT.rglob("*") if file.is_file()), *sorted(SHARED.glob("*.dcm"))]:
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
        if path.name in NOT_DICOM:
            continue
        # The records of a DICOMDIR and the files of TINY_ALPHA have no pixels.
        reason = "pixels are incomplete" if "TINY_ALPHA" in name else REFUSED.get(name)
        reason = "is the directory of a DICOM medium" if path.name.startswith("DICOMDIR") else reason
        try:
            picture = np.asarray(read(path, square=False)[0]).astype(int)
        except UserError as error:
            if reason is None or reason not in str(error):
                wrong.append(f"{name} is refused: {error}")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = expected_picture(path)
        compared += 1
        # Decoders of lossy JPEG and of its colors differ by some levels.
        tolerance = 8 if "jpeg" in name.lower() or "lossy" in name else 1
        if picture.shape != expected.shape or np.abs(picture - expected).max() > tolerance:
            wrong.append(f"{name} differs from the other decoding")
    assert not wrong
    assert compared >= 85
