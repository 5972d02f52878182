"""Readers of image files: a suffix finds the function that turns a file into RGB pictures."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from mllm.dataset.readers import dicom, image, nifti, video
from mllm.errors import ConfigError, DataError, near
from mllm.registry import READERS

__all__ = ["dicom", "image", "nifti", "read_images", "video"]

_PREAMBLE = 132
"""A DICOM file begins with 128 free bytes and the letters DICM (PS3.10, section 7.1)."""


def read_images(path: str | Path, **options: Any) -> list[Image.Image]:
    """Read one file with the reader of its suffix, as RGB pictures.

    The suffix is looked up in READERS regardless of case, the longest first (`.nii.gz`); a DICOM file is also known
    by its preamble, whatever its name. `options` are the reader's own keyword arguments: `page` and `window` for
    images, `frames` and `window` for DICOM, `axis`, `slice`, `volume` and `window` for NIfTI, `frames` for videos.

    Raises `DataError`, which names the file, for one that is missing, empty or damaged, and `ConfigError` for an
    option that the reader does not have or a package that is not installed.
    """
    path = Path(path)
    _check_file(path)
    suffix, read = _find_reader(path)
    known = inspect.signature(read).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    names = [name for name, parameter in known.items() if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        if name not in names and not open_ended:
            close = "".join(f": did you mean '{match}'?" for match in near(name, names, count=1))
            its_own = ", ".join(names) or "none"
            raise ConfigError(f"the reader of {suffix} files has no option '{name}' (it has {its_own}){close}")
    try:
        return read(path, **options)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from error


def _check_file(path: Path) -> None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if path.is_dir():
        raise DataError(f"{path} is a directory, not an image file")
    if status.st_size == 0:
        raise DataError(f"{path} is empty")


def _find_reader(path: Path) -> tuple[str, Callable[..., list[Image.Image]]]:
    """The suffix by which the file goes, and its reader."""
    name = path.name.lower()
    for suffix in sorted(READERS.module_dict, key=len, reverse=True):
        if name.endswith(suffix):
            return suffix, READERS.find(suffix)
    try:
        with path.open("rb") as file:
            head = file.read(_PREAMBLE)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if head.endswith(b"DICM"):
        return ".dcm", READERS.find(".dcm")
    raise DataError(f"{path} has no suffix that a reader knows; known are {', '.join(sorted(READERS.module_dict))}")
