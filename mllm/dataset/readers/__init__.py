"""Readers of image files, found by file suffix; every reader returns RGB images.

Limits of a file:

* Pixels: an image, page or frame has at most 178,956,970, a volume at most 2^31 voxels; the header is checked before
  anything is decoded. A file that is too short for its header is refused.
* Time and memory: files whose header shows a small cost are decoded in this process: PNG, JPEG, BMP, uncompressed
  TIFF and DICOM, and small volumes (NIfTI, MetaImage, NRRD, reformatted DICOM series). Their time and memory are
  proportional to their pixels and size. Compressed TIFF, WebP, GIF and other images, videos, compressed DICOM and large
  volumes are decoded in the guarded process: at most 30 s for an image, a frame of a video or a slice of a
  series, for a volume also one second for each 10 MiB of its voxels, 8 GiB of memory, and 4 GiB of results.
* Compressed streams: a deflated or gzip-compressed DICOM file may decompress to 1 GiB, and compressed volumes are read
  up to the size that their header describes.
* Series: a folder or list has at most 4,096 slices.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mllm.dataset.readers.content import content_hint
from mllm.dataset.readers.dicom_frames import has_dicom_content
from mllm.dataset.readers.faults import unusable
from mllm.dataset.readers.gray import NoSuchImageError
from mllm.dataset.readers.guarded import GuardedError
from mllm.dataset.readers.notices import report_constant
from mllm.errors import ConfigError, DataError, UserError
from mllm.registry import READERS, check_names

_SERIES = "DICOM series"
"""Entry of READERS for folders and lists of files."""
_SELECTING = ("frames", "slice", "page")
"""Options of readers that select an image of a file."""
_OF_ONE = (".png", ".jpg", ".jpeg", ".bmp")
"""Suffixes of files whose first page alone is of interest: opening another one would start the guarded process."""


def read_images(path: str | Path | Sequence[str | Path], **options: Any) -> list[Image.Image]:
    """Read a file with the reader of its suffix, or a folder or list of files as the slices of a DICOM series.

    Suffixes are entries of READERS; case is ignored and the longest suffix wins (`.nii.gz`). A file with another
    suffix is read as DICOM if it begins with the DICOM preamble or with an element of DICOM. A file whose images are
    nearly constant is named in a warning.

    Args:
        path: The file, a folder, or a list of files.
        options: Keyword arguments of the reader: `page` and `window` for images, `frames`, `window` and `square` for
            DICOM, `axis`, `slice`, `volume`, `window` and `square` for volumes, `frames` for videos.

    Returns:
        RGB images.

    Raises:
        DataError: The file is missing, empty or damaged.
        ConfigError: The reader does not have an option, or a package is not installed.
    """
    source = Path(path) if isinstance(path, (str, Path)) else [Path(file) for file in path]
    files = [source] if isinstance(source, Path) else source
    for file in files:
        _check_file(file)
    path = files[0]
    suffix = _suffix_of(source)
    if options:
        check_names(READERS, suffix, options, ("reader",), provided=("path",))
    if not isinstance(options.get("square", True), bool):
        raise ConfigError(f"square={options['square']!r} must be True or False")
    try:
        images = _read(source, path, suffix, options)
    except NoSuchImageError:
        raise
    except DataError as error:
        hint = "" if suffix == _SERIES else content_hint(path, suffix)
        raise DataError(f"{error}{hint}", error.reason and f"{error.reason}{hint}") if hint else error from None
    for image in images:
        report_constant(path, image)
    return images


def _read(source: Path | list[Path], path: Path, suffix: str, options: dict[str, Any]) -> list[Image.Image]:
    """Return the images of a file, whose reader may raise any exception; see `read_images`."""
    try:
        images: list[Image.Image] = READERS.find(suffix)(source, **options)
    except UserError:
        raise
    except GuardedError as error:
        raise unusable(path, f"cannot be read: {error.reason}") from error
    except MemoryError:
        raise unusable(path, "cannot be read: it needs more memory than is free") from None
    except OSError as error:
        raise unusable(path, f"cannot be read: {error.strerror or type(error).__name__}") from error
    except Exception as error:
        # Libraries raise nearly every type for some damaged file.
        raise unusable(path, f"cannot be read: it is damaged ({type(error).__name__})") from error
    return images


def count_images(path: str | Path | Sequence[str | Path], **options: Any) -> tuple[str, int]:
    """Return the option that selects an image of a file (`frames`, `slice` or `page`), and the number of its images.

    Only the header is decoded where it has the number. The arguments and errors are those of `read_images`, without the
    selecting option. Raise `ConfigError` if the reader has no such option.
    """
    source = Path(path) if isinstance(path, (str, Path)) else [Path(file) for file in path]
    for file in [source] if isinstance(source, Path) else source:
        _check_file(file)
    suffix = _suffix_of(source)
    known = READERS.describe(suffix).parameters
    name = next((option for option in _SELECTING if option in known), None)
    if name is None:
        raise ConfigError(f"the reader of {suffix} has none of the options {', '.join(_SELECTING)}")
    if suffix in _OF_ONE:
        return name, 1
    try:
        return name, len(read_images(path, **options, **{name: sys.maxsize}))
    except NoSuchImageError as error:
        return name, error.count


def reads_option(path: str | Path | Sequence[str | Path], option: str) -> bool:
    """Return True if the reader of a file has an option, such as `axis`."""
    source = Path(path) if isinstance(path, (str, Path)) else [Path(file) for file in path]
    return option in READERS.describe(_suffix_of(source)).parameters


def _suffix_of(source: Path | list[Path]) -> str:
    """Return the entry of READERS for a file, or for a folder or a list of files."""
    return _SERIES if isinstance(source, list) or source.is_dir() else _find_suffix(source)


def _check_file(path: Path) -> None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise unusable(path, "does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if status.st_size == 0 and not path.is_dir():
        raise unusable(path, "is empty")


def _find_suffix(path: Path) -> str:
    """Return the suffix under which the reader of a file is registered."""
    name = path.name.lower()
    suffixes = [suffix for suffix in READERS.names() if suffix != _SERIES]
    for suffix in sorted(suffixes, key=len, reverse=True):
        if name.endswith(suffix):
            return suffix
    try:
        if has_dicom_content(path):
            return ".dcm"
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    raise unusable(path, f"has a suffix that no reader supports; supported are {', '.join(suffixes)}")
