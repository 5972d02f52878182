"""Headers of NRRD volumes, `.nrrd` and `.nhdr` (https://teem.sourceforge.net/nrrd/format.html)."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from mllm.dataset.readers.faults import unusable
from mllm.dataset.readers.stored_volume import MAX_HEADER, StoredVolume

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_TO_RAS = {"right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1), "left-anterior-superior": (-1, 1, 1)}
_TO_RAS |= {"las": (-1, 1, 1)}
"""Factors that convert directions of a space to RAS; others count as LPS, as in ITK."""
_SERIES = ("list", "time")
"""Kinds of an axis along which volumes follow each other."""
_SPATIAL = ("domain", "space", "")
_VECTOR = re.compile(r"none|\([^()]*\)")


def read_header(path: Path) -> StoredVolume:
    """Read the header of a NRRD file.

    Voxels are raw or compressed by gzip or bzip2, in the file or in one other file. An axis of kind `list` or `time`,
    or the last of four axes of space, counts volumes; colors, vectors and other kinds are refused. Without directions
    the axes lead to the patient's left, back and head.

    Raises:
        DataError: It is damaged, or the voxels have a form that is not supported.
    """
    fields, end = _fields(path)
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise unusable(path, f"is not a NRRD volume: its header has no '{name}'")
    kind = next((kind for kind, names in _TYPES.items() if fields["type"].lower() in names), None)
    encoding = _ENCODINGS.get(fields["encoding"].lower())
    if kind is None or encoding is None:
        part = "a type" if kind is None else "an encoding"
        raise unusable(path, f"has {part} that is not supported: numbers that are raw, gzip or bzip2 are")
    if kind[1] != "1" and fields.get("endian", "").lower() not in ("little", "big"):
        raise unusable(path, "does not name the byte order of its voxels ('endian')")
    sizes = [int(number) for number in _numbers(path, fields, "sizes")]
    if str(len(sizes)) != fields["dimension"]:
        raise unusable(path, "has another number of sizes than dimensions")
    space, series = _axes(path, fields, len(sizes))
    shape = [sizes[number] for number in space] + [1] * (3 - len(space))
    directions, spacing = _geometry(path, fields, space)
    data, offset = _data_file(path, fields, end, encoding)
    return StoredVolume(
        path,
        data,
        offset,
        np.dtype((">" if fields.get("endian", "").lower() == "big" else "<") + kind),
        (shape[0], shape[1], shape[2]),
        sizes[series] if series is not None else 1,
        series == 0,
        encoding,
        directions,
        spacing,
        _is_in_mm(fields),
    )


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields of a header by lower-case names, without comments and key/value pairs, and its end."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER)
    if not head.startswith(b"NRRD000"):
        raise unusable(path, "is not a NRRD volume: it does not begin with NRRD")
    match = re.search(rb"\r?\n\r?\n", head)
    end = match.end() if match else len(head)
    fields = {}
    for line in head[:end].decode("utf-8", "replace").splitlines()[1:]:
        name, separator, value = line.partition(": ")
        if separator and not line.startswith("#"):
            fields[name.strip().lower()] = value.strip()
    if match is None and "data file" not in fields and "datafile" not in fields:
        raise unusable(path, "is truncated or damaged: its header has no end")
    return fields, end


def _numbers(path: Path, fields: dict[str, str], name: str) -> list[float]:
    try:
        numbers = [float(number) for number in fields[name].split()]
    except ValueError:
        numbers = [math.inf]
    if any(map(math.isinf, numbers)) or (name == "sizes" and any(map(math.isnan, numbers))):
        raise unusable(path, f"has invalid {name}")
    return numbers


def _axes(path: Path, fields: dict[str, str], count: int) -> tuple[list[int], int | None]:
    """Return the numbers of the two or three axes of a volume, and that of the axis that counts volumes."""
    kinds = fields.get("kinds", " ".join(["domain"] * count)).lower().replace("???", "domain").split()
    vectors = _VECTOR.findall(fields.get("space directions", ""))
    if len(kinds) != count or (vectors and len(vectors) != count):
        raise unusable(path, "has another number of kinds or directions than dimensions")
    if count == 4 and "none" not in vectors and all(kind in _SPATIAL for kind in kinds):
        kinds[3] = "list"  # ITK writes a series with four axes of space
    without_direction = {number for number, vector in enumerate(vectors) if vector == "none"}
    others = [number for number in range(count) if kinds[number] not in _SPATIAL or number in without_direction]
    space = [number for number in range(count) if number not in others]
    is_series = all(kinds[number] in (*_SERIES, "none") and number in (0, count - 1) for number in others)
    if len(space) not in (2, 3) or len(others) > 1 or not is_series:
        raise unusable(path, "is not a volume, or a series of volumes, of real numbers: its axes have other kinds")
    return space, others[0] if others else None


def _geometry(path: Path, fields: dict[str, str], space: list[int]) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return the directions of the axes of a volume in RAS, one per column, and their spacing."""
    factors = np.array(_TO_RAS.get(fields.get("space", "").lower(), (-1, -1, 1)), float)
    steps = np.eye(3)
    vectors = _VECTOR.findall(fields.get("space directions", ""))
    if vectors:
        for axis, number in enumerate(space):
            try:
                step = [float(part) for part in vectors[number].strip("()").split(",")]
            except ValueError:
                step = [math.nan]
            if len(step) == 4 and len(space) == 3 and step[3] == 0:
                del step[3]  # the axis of the series
            if len(step) != len(space) or not np.isfinite(step).all():
                raise unusable(path, "has invalid space directions")
            steps[: len(step), axis] = step
            steps[len(step) :, axis] = 0
    elif "spacings" in fields:
        sides = _numbers(path, fields, "spacings")
        if len(sides) <= max(space):
            raise unusable(path, "has invalid spacings")
        steps[range(len(space)), range(len(space))] = [abs(sides[number]) for number in space]
    lengths = np.linalg.norm(steps, axis=0)
    if not (lengths > 0).all():
        raise unusable(path, "has an impossible spacing")
    if len(space) == 2:
        lengths[2] = lengths[0]
        steps[2, 2] = lengths[0]
    return factors[:, None] * steps / lengths, (float(lengths[0]), float(lengths[1]), float(lengths[2]))


def _is_in_mm(fields: dict[str, str]) -> bool:
    """Return True if a header has the sides of voxels, in mm; a space of the patient without units is in mm."""
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", fields.get("units", ""))))
    return ("space directions" in fields or "spacings" in fields) and units <= {"mm", "millimeter", "millimeters", ""}


def _data_file(path: Path, fields: dict[str, str], end: int, encoding: str) -> tuple[Path, int]:
    """Return the file with the voxels, and their position in it."""
    name = fields.get("data file", fields.get("datafile"))
    try:
        lines, skipped = int(fields.get("line skip", "0")), int(fields.get("byte skip", "0"))
    except ValueError:
        raise unusable(path, "has an invalid line skip or byte skip") from None
    if lines or (skipped and encoding != "raw"):
        raise unusable(path, "skips lines, or bytes of compressed voxels, which is not supported")
    if name is None:
        return path, end + skipped if skipped >= 0 else -1
    name = name.removeprefix("./")
    if name.startswith("LIST") or "%" in name or Path(name).name != name:
        raise unusable(path, "has its voxels in several files or in another folder, which is not supported")
    return path.with_name(name), skipped
