"""Headers of MetaImage volumes, `.mha` and `.mhd` (https://itk.org/Wiki/ITK/MetaIO/Documentation)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mllm.dataset.readers.faults import unusable
from mllm.dataset.readers.stored_volume import MAX_HEADER, StoredVolume
from mllm.dataset.readers.volumes import LPS_TO_RAS

_ELEMENTS = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NEEDED = ("NDims", "DimSize", "ElementType", "ElementDataFile")
_DIRECTIONS = ("TransformMatrix", "Rotation", "Orientation")
"""Names of the element with the directions, in the order of the documentation."""


def read_header(path: Path) -> StoredVolume:
    """Read the header of a MetaImage.

    Raises:
        DataError: It is damaged, or the voxels have a form that is not supported.
    """
    fields, end = _fields(path)
    for name in _NEEDED:
        if name not in fields:
            raise unusable(path, f"is not a MetaImage: it has no {name}")
    kind = _ELEMENTS.get(fields["ElementType"])
    if kind is None or fields.get("ElementNumberOfChannels", "1") != "1":
        raise unusable(path, "has voxels of a type that is not supported: only real numbers of one channel are")
    if fields.get("BinaryData", "True").lower() == "false":
        raise unusable(path, "has voxels in text form, which is not supported: save it as binary")
    shape = [int(number) for number in _numbers(path, fields, "DimSize")]
    count = len(shape)
    if str(count) != fields["NDims"] or count not in (2, 3, 4):
        raise unusable(path, "must have 2, 3 or 4 dimensions, in NDims and DimSize")
    directions, spacing = _geometry(path, fields, count)
    is_compressed = fields.get("CompressedData", "").lower() in ("true", "1")
    data, offset = _data_file(path, fields, end)
    if is_compressed and offset < 0:
        raise unusable(path, "has a negative HeaderSize before compressed voxels, which is not supported")
    return StoredVolume(
        path,
        data,
        offset,
        np.dtype((">" if _is_big_endian(fields) else "<") + kind),
        (shape[0], shape[1], shape[2] if count > 2 else 1),
        math.prod(shape[3:]),
        False,
        "gzip" if is_compressed else "raw",
        LPS_TO_RAS[:, None] * directions,
        spacing,
        "ElementSpacing" in fields or "ElementSize" in fields,
    )


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the elements of a header up to ElementDataFile, and the position behind it."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER)
    fields: dict[str, str] = {}
    position = 0
    while position < len(head) and "ElementDataFile" not in fields:
        end = head.find(b"\n", position)
        end = len(head) if end < 0 else end
        try:
            key, separator, value = head[position:end].decode("utf-8").partition("=")
        except UnicodeDecodeError:
            separator = ""
        if not separator:
            break
        fields[key.strip()] = value.strip()
        position = end + 1
    return fields, position


def _numbers(path: Path, fields: dict[str, str], name: str, default: str = "") -> list[float]:
    try:
        numbers = [float(number) for number in fields.get(name, default).split()]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise unusable(path, f"has an invalid {name}")
    return numbers


def _geometry(path: Path, fields: dict[str, str], count: int) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return the directions of the first three axes in LPS, one per column, and their spacing."""
    name = "ElementSpacing" if "ElementSpacing" in fields else "ElementSize"
    sides = _numbers(path, fields, name, " ".join(["1"] * count))
    directions = np.eye(3)
    element = next((element for element in _DIRECTIONS if element in fields), None)
    if element is not None:
        numbers = _numbers(path, fields, element)
        if len(numbers) != count**2:
            raise unusable(path, f"has an invalid {element}")
        used = min(count, 3)
        # The numbers of an axis follow each other.
        directions[:used, :used] = np.reshape(numbers, (count, count))[:used, :used].T
    if len(sides) != count:
        raise unusable(path, f"has an invalid {name}")
    return directions, (sides[0], sides[1], sides[2] if count > 2 else sides[0])


def _is_big_endian(fields: dict[str, str]) -> bool:
    return any(
        fields.get(name, "").lower() in ("true", "1") for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    )


def _data_file(path: Path, fields: dict[str, str], end: int) -> tuple[Path, int]:
    """Return the file with the voxels, and their position in it."""
    name = fields["ElementDataFile"]
    if name == "LOCAL":
        return path, end
    if name.startswith("LIST") or "%" in name or Path(name).name != name:
        raise unusable(path, "has its voxels in several files or in another folder, which is not supported")
    try:
        skipped = int(fields.get("HeaderSize", "0"))
    except ValueError:
        raise unusable(path, "has an invalid HeaderSize") from None
    return path.with_name(name), skipped
