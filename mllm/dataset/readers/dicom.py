"""Reader of DICOM files. Only pixel data and their transforms are read, nothing that identifies a patient."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mllm.dataset.readers.gray import Choice, Window, choose, find_window, full_range, scaled, to_image
from mllm.errors import ConfigError, DataError
from mllm.registry import READERS

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_TRANSFORM_TAGS = (
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
)
_TAGS = (
    *("SOPClassUID", "Modality", "NumberOfFrames", "PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", *_TRANSFORM_TAGS),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("PaletteColorLookupTableUID", "RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"),
    *("SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData"),
    "SegmentedBluePaletteColorLookupTableData",
)
"""All elements that are read of a file: pixels and their transforms to gray values."""

_DECODERS = ("pydicom", "pylibjpeg", "pyjpegls", "pillow")
"""Decoding plugins in order of preference. GDCM, pydicom's first choice, comes last: it aborts the process at some
damaged JPEG streams and is only needed for lossless JPEG."""


@READERS.register_module(name=[".dcm", ".dicom", ".ima"])
def read(path: Path, *, frames: Choice = "first", window: Window = None) -> list[Image.Image]:
    """Read frames of a DICOM file as RGB images.

    Gray values are transformed by the modality LUT or rescale, then by `window`, else by the first VOI LUT or window
    of the file, else from the full range of the frame. MONOCHROME1 is inverted and padding is black. RGB, YBR and
    palette images are converted to RGB. Overlays are ignored.

    Args:
        path: The file.
        frames: Indices from 0: an index, a list, 'first', 'middle', 'last' or 'all'.
        window: Name of a CT window (`WINDOWS` in `gray.py`; only for CT in Hounsfield units), or (center, width) in
            the units after rescaling.

    Raises:
        DataError: The file cannot be decoded. The message contains no value of the file except its SOP class and
            encoding.
    """
    limits = find_window(window)
    try:
        import pydicom
    except ImportError:
        raise ConfigError(f"{path} is a DICOM file, but pydicom is not installed: pip install -e .[dicom]") from None
    try:
        # Warnings of pydicom contain values of the file.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(path, frames, window, limits)
    except (ConfigError, DataError, OSError):
        raise
    except pydicom.errors.InvalidDicomError:
        raise DataError(f"{path} is not a DICOM file: it does not begin with the DICOM preamble") from None
    except Exception as error:  # noqa: BLE001
        # pydicom and its decoders raise many types, with values of the file in the message: hence no exception chain.
        raise DataError(
            f"{path} cannot be decoded: its header or its pixels are damaged ({type(error).__name__})"
        ) from None


def _read(path: Path, frames: Choice, window: Window, limits: tuple[float, float] | None) -> list[Image.Image]:
    import pydicom

    header = pydicom.dcmread(path, specific_tags=list(_TAGS), defer_size=4096)
    if not any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise DataError(f"{path} {_why_no_pixels(header)}")
    count = int(header.get("NumberOfFrames") or 1)
    return [
        _to_rgb(_decode(path, header, index), _frame_header(header, index), path, window, limits)
        for index in choose(frames, count, path, "frames", "frame")
    ]


def _why_no_pixels(header: Dataset) -> str:
    # pydicom returns an empty header if compressed pixels are truncated.
    if (kind := header.get("SOPClassUID")) is None or "BitsAllocated" in header or "Image" in kind.name:
        return "is truncated or damaged: it is an image, but its pixels are incomplete"
    name = "" if kind.name == kind else f": SOP class {kind.name}"
    return f"has no pixels (it is a waveform such as an ECG, a report or a plan{name})"


def _decode(path: Path, header: Dataset, index: int) -> np.ndarray:
    """Return the stored values of one frame, [H, W] or [H, W, 3]; YBR is converted to RGB."""
    from pydicom.pixels import get_decoder, pixel_array

    syntax = header.file_meta.get("TransferSyntaxUID")
    name = "in an encoding that the file does not specify" if syntax is None or syntax.name == syntax else syntax.name
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(f"{path} cannot be decoded: its pixels are {name}; convert it to an image or a video") from None
    if not decoder.is_available:
        raise ConfigError(f"{path} needs a decoder for {name}, which is not installed: pip install -e .[dicom]")
    try:
        # One call per frame: the iterators of pydicom carry the color conversion of a frame over to the next.
        plugin = next((name for name in _DECODERS if name in decoder.available_plugins), "")
        return pixel_array(path, index=index, decoding_plugin=plugin)
    except (RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be decoded: its pixels ({name}) are truncated, damaged or in a form that no installed "
            f"decoder reads ({type(error).__name__}); if another program opens it, save it as uncompressed DICOM"
        ) from None


def _frame_header(header: Dataset, index: int) -> Dataset:
    """Return the header with the functional groups of all frames and of this frame merged in (PS3.3 C.7.6.16)."""
    from pydicom.dataset import Dataset

    frame = Dataset()
    frame.file_meta = header.file_meta
    for name in _TAGS:
        if name in header and not name.endswith(("PixelData", "FunctionalGroupsSequence")):
            frame[name] = header[name]
    groups = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    groups += list(header.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
    for group in groups:
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group.get(macro) or []:
                for name in _TRANSFORM_TAGS:
                    if name in item:
                        frame[name] = item[name]
    return frame


def _to_rgb(
    stored: np.ndarray, header: Dataset, path: Path, window: Window, limits: tuple[float, float] | None
) -> Image.Image:
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    if header.PhotometricInterpretation == "PALETTE COLOR" or stored.ndim == 3:
        if limits is not None:
            raise DataError(f"{path} is in color, but a window needs a gray image")
        bits = header.BitsStored
        if stored.ndim == 2:
            stored = apply_color_lut(stored, header)
            bits = stored.dtype.itemsize * 8
        eight = stored if bits == 8 else np.rint(stored * (255 / (2**bits - 1)))
        return Image.fromarray(eight.astype(np.uint8)).convert("RGB")
    rescaled = header.get("RescaleSlope") is not None and header.get("RescaleIntercept") is not None
    if isinstance(window, str) and not (header.get("Modality") == "CT" and rescaled):
        raise DataError(
            f"{path} is not a CT in Hounsfield units, which window='{window}' requires; use window=(center, width)"
        )
    padding = _is_padding(stored, header)
    values = apply_modality_lut(stored, header)
    unit = scaled(values, *limits) if limits is not None else _apply_voi(values, header, padding)
    if header.PhotometricInterpretation == "MONOCHROME1":
        unit = 1 - unit
    unit[padding] = 0
    return to_image(unit)


def _is_padding(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Return the mask of padding pixels (PS3.3 C.7.5.1.1.2), [H, W] bool."""
    first = header.get("PixelPaddingValue")
    if first is None or stored.dtype.kind == "f":
        return np.zeros(stored.shape, bool)
    last = header.get("PixelPaddingRangeLimit")
    # Files often store the value of a signed image as unsigned, or vice versa: compare the bits.
    ends = np.asarray([first, first if last is None else last]).astype(stored.dtype)
    return (stored >= ends.min()) & (stored <= ends.max())


def _apply_voi(values: np.ndarray, header: Dataset, padding: np.ndarray) -> np.ndarray:
    """Map values to [0, 1] by the first VOI LUT or window of the file, else from their minimum to their maximum."""
    if header.get("VOILUTSequence"):
        table = header.VOILUTSequence[0]
        entries, first, bits = table.LUTDescriptor
        data = table.LUTData
        order = "<" if header.file_meta.TransferSyntaxUID.is_little_endian else ">"
        lut = np.frombuffer(data, f"{order}u2") if isinstance(data, bytes) else np.asarray(data)
        indices = np.clip(np.rint(values) - first, 0, min(entries or 65536, len(lut)) - 1).astype(int)
        return lut[indices] / (2**bits - 1)
    if header.get("WindowCenter") is None or header.get("WindowWidth") is None:
        return scaled(values, *full_range(values[~padding]))
    # Several windows are alternative views; the first is the default.
    center, width = (float(np.atleast_1d(header[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    function = header.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        # By PS3.3 C.11.2.1.2.1 the width counts the steps between integers, not the integers.
        center, width = center - 0.5, width - 1
    half = max(width / 2, 1e-6)
    return scaled(values, center - half, center + half)
