"""Allow-lists of DICOM elements: those that are read, and those whose values messages may show.

Nothing else of a header is read, so that no name, date or identifier of a patient can reach an image, a log, a card or
a report. The headers of other formats are used for pixels and geometry only: their texts are never shown, except the
name of a file of voxels that a header of MetaImage or NRRD names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mllm.dataset.readers.notices import warn_once

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

TRANSFORM_TAGS = (
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
)
PATIENT_SPACING = "PixelSpacing"
"""Element with the height and the width of a pixel in the patient, in mm."""
SPACING_TAGS = (PATIENT_SPACING, "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
"""Elements with the height and the width of a pixel, in this order of preference (PS3.3 C.7.6.3.1.7)."""
REGIONS = "SequenceOfUltrasoundRegions"
"""Element with the regions of an ultrasound image and the size of their pixels (PS3.3 C.8.5.5)."""
GEOMETRY_TAGS = ("ImagePositionPatient", "ImageOrientationPatient")
"""Elements with the place of a slice in the patient (PS3.3 C.7.6.2)."""
PIXEL_TAGS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
TAGS = (
    *("SOPClassUID", "Modality", "BurnedInAnnotation"),
    *("NumberOfFrames", *PIXEL_TAGS, "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("Rows", "Columns", "SamplesPerPixel", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", *TRANSFORM_TAGS, *SPACING_TAGS, *GEOMETRY_TAGS),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", REGIONS),
    *("PaletteColorLookupTableUID", "RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"),
    *("SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData"),
    "SegmentedBluePaletteColorLookupTableData",
)
"""All elements that are read of a file: pixels, their transforms to gray values, and their places."""
SERIES_TAGS = ("SeriesInstanceUID",)
"""Elements that are also read of the slices of a series, to compare them between files; they are not in `SHOWN`."""

_COLORS = (
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422"),
    *("YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "ARGB", "HSV", "CMYK"),
)
SHOWN: Mapping[str, str] = {
    "SOPClassUID": "uid",
    "TransferSyntaxUID": "uid",
    "PhotometricInterpretation": "term",
    **dict.fromkeys(("BitsStored", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"), "number"),
}
"""Elements whose values messages may show, with their form: the name of a registered UID, a defined term, a number."""
UNKNOWN = "unknown"
BURNED_IN = "text in the pixels"
"""Kind of the warning about burned-in text."""
_CLASSES_WITH_TEXT = tuple(
    f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("3", "3.1", "6", "6.1", "6.2", "7", "7.1", "7.2", "7.3", "7.4")
)
"""SOP classes of ultrasound (also retired ones) and of secondary captures."""


def shown(header: Dataset, name: str) -> str:
    """Return the value of an element in `SHOWN` as text for messages; 'unknown' for one that has another form.

    Raises:
        KeyError: The element is not in `SHOWN`.
    """
    form, value = SHOWN[name], header.get(name)
    if form == "uid":
        # The name of a UID that is not registered is the UID itself, which may identify a patient's image.
        return str(value.name) if value is not None and value.name != value else UNKNOWN
    if form == "term":
        return str(value) if value in _COLORS else UNKNOWN
    try:
        first = value if isinstance(value, (int, float)) else value[0]
        return f"{float(first):g}"
    except (TypeError, ValueError, IndexError):
        return UNKNOWN


def warn_of_text(header: Dataset, path: Path) -> None:
    """Warn of the first file of a run whose pixels contain text, or probably do, which may name the patient.

    Ultrasound and secondary captures without BurnedInAnnotation probably contain text: machines write the patient's
    name into the image, and screen shots contain it.
    """
    value = header.get("BurnedInAnnotation")
    is_likely = header.get("SOPClassUID") in _CLASSES_WITH_TEXT
    if value == "YES":
        cause = "has text in its pixels (BurnedInAnnotation YES)"
    elif value != "NO" and (is_likely or header.get("Modality") == "US"):
        cause = "may have text in its pixels, as ultrasound and secondary captures without BurnedInAnnotation often do"
    else:
        return
    advice = "if it names the patient, mask or crop it; `mllm data CONFIG` lists all such rows"
    warn_once(path, BURNED_IN, f"{cause}; {advice}", files=1)
