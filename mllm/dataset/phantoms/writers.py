"""Writers of images, videos and volumes for miniatures of datasets and for tests."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mllm.files import replaced_path, write_text

_PIXEL_FORMATS = {
    "mjpeg": "yuvj444p",
    "mpeg4": "yuv420p",
    "ffv1": "bgr0",
    "libx264": "yuv420p",
    "libvpx-vp9": "yuv420p",
}
_ELEMENTS = {"u1": "MET_UCHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "f4": "MET_FLOAT"}


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image as PNG, or as JPEG if its suffix is `.jpg`, under a temporary name, and rename it.

    Its folder is created if it does not exist.
    """
    with replaced_path(path) as temporary:
        if path.suffix == ".jpg":
            image.save(temporary, format="JPEG")
        else:
            image.save(temporary, format="PNG", compress_level=1)  # a fourth of the time of 6; files are 3 % larger


def write_nifti(
    path: str | Path, volume: np.ndarray, spacing: Sequence[float] = (1, 1, 1), affine: np.ndarray | None = None
) -> Path:
    """Write voxels [X, Y, Z] or [X, Y, Z, T] as NIfTI, in RAS+ with `spacing` in mm unless `affine` [4, 4] is set."""
    import nibabel

    image = nibabel.Nifti1Image(volume, np.diag([*spacing, 1.0]) if affine is None else affine)
    nibabel.save(image, path)
    return Path(path)


def write_avi(
    path: str | Path,
    frames: Sequence[np.ndarray],
    codec: str = "mjpeg",
    fps: int = 25,
    options: dict[str, str] | None = None,
) -> Path:
    """Write [H, W] or [H, W, 3] uint8 frames as a video; the suffix selects the container (`.avi`, `.mp4`, `.mkv`).

    Height and width must be even. `codec` is `mjpeg` (every frame a keyframe), `mpeg4` (a keyframe every 12), `ffv1`
    (lossless), `libx264` or `libvpx-vp9`; `options` are passed to the encoder.
    """
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = _PIXEL_FORMATS[codec]
        for pixels in frames:
            picture = av.VideoFrame.from_ndarray(pixels, format="gray" if pixels.ndim == 2 else "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return Path(path)


def write_mhd(path: str | Path, pixels: np.ndarray, spacing: Sequence[float], compressed: bool = False) -> Path:
    """Write pixels [H, W] or [F, H, W] as a MetaImage: a header file and a `.raw` or `.zraw` file.

    `spacing` is in mm: horizontal, vertical and, for frames, between frames.
    """
    path = Path(path)
    data = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes()
    raw = path.with_suffix(".zraw" if compressed else ".raw")
    lines = {
        "ObjectType": "Image",
        "NDims": pixels.ndim,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": compressed,
        "ElementSpacing": " ".join(str(float(step)) for step in spacing),
        "DimSize": " ".join(str(length) for length in reversed(pixels.shape)),
        "ElementType": _ELEMENTS[pixels.dtype.str[1:]],
        "ElementDataFile": raw.name,
    }
    raw.write_bytes(zlib.compress(data) if compressed else data)
    return write_text(path, "".join(f"{key} = {value}\n" for key, value in lines.items()))


def write_pickle(path: Path, value: Any) -> Path:
    """Write a pickle under a temporary name, rename it, and return its path."""
    with replaced_path(path) as temporary:
        temporary.write_bytes(pickle.dumps(value))
    return path
