"""Kinds of files by their first bytes, for messages about files whose suffix names another kind."""

from __future__ import annotations

from pathlib import Path

_DICOM = (".dcm", ".dicom", ".ima", ".dcm.gz")
_PILLOW = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_NIFTI = (".nii", ".nii.gz")
_VIDEO = (".avi", ".mp4", ".mov", ".mkv")
_KINDS: tuple[tuple[int, bytes, str, str, tuple[str, ...]], ...] = (
    (128, b"DICM", "a DICOM file", ".dcm", _DICOM),
    (344, b"n+1\0", "a NIfTI volume", ".nii", _NIFTI),
    (0, b"\x89PNG", "a PNG image", ".png", _PILLOW),
    (0, b"\xff\xd8\xff", "a JPEG image", ".jpg", _PILLOW),
    (0, b"GIF8", "a GIF image", ".gif", _PILLOW),
    (0, b"II*\0", "a TIFF image", ".tif", _PILLOW),
    (0, b"MM\0*", "a TIFF image", ".tif", _PILLOW),
    (8, b"WEBP", "a WebP image", ".webp", _PILLOW),
    (8, b"AVI ", "an AVI video", ".avi", _VIDEO),
    (4, b"ftyphei", "a HEIC photo: save it as PNG", "", ()),
    (4, b"ftypmif", "a HEIC photo: save it as PNG", "", ()),
    (4, b"ftypavif", "an AVIF image: save it as PNG", "", ()),
    (4, b"ftyp", "an MP4 video", ".mp4", _VIDEO),
    (0, b"NRRD000", "an NRRD volume", ".nrrd", (".nrrd", ".nhdr")),
    (0, b"ObjectType", "a MetaImage volume", ".mha", (".mha", ".mhd")),
    (0, b"version https://git-lfs", "a pointer of Git LFS: fetch the file with git lfs pull", "", ()),
    (0, b"<!DOCTYPE", "a web page: download the file itself", "", ()),
    (0, b"<html", "a web page: download the file itself", "", ()),
    (0, b"PK\x03\x04", "a zip archive: extract it", "", ()),
    (0, b"%PDF", "a PDF document: save its images", "", ()),
)
"""Position and text by which a kind is recognized, its name, its suffix, and all suffixes of its reader, which looks at
the content; none: no reader reads it."""
_LENGTH = max(position + len(text) for position, text, *_ in _KINDS)


def content_hint(path: Path, suffix: str) -> str:
    """Return the end of a message about an unusable file, ` (its content is a PNG image: rename it to .png)`.

    It is empty if the content fits the suffix, or is of an unknown kind.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_LENGTH)
    except OSError:
        return ""
    for position, text, name, own, suffixes in _KINDS:
        if head[position : position + len(text)] == text:
            if suffix in suffixes:
                return ""
            return f" (its content is {name}{f': rename it to {own}' if own else ''})"
    return ""
