"""Benchmark of the data path: CPU time from an image file to the pixels of the model, for each kind of file.

Each method has one core, and methods alternate. The script ends without a table if their pixels differ. README.md has
the figures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import nibabel
import numpy as np
import pydicom
import torch
from interleaved import machine
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional
from transformers.models.gemma3 import Gemma3ImageProcessorPil

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.dataset.readers import read_images
from mllm.models.builder.builder import load_pretrained
from mllm.structures import Sample, Turn
from mllm.tiny.checkpoints import write_tiny

SIZES = {448: 64, 896: 256}
"""Size of the model's image -> number of its tokens."""
WINDOW = (40.0, 400.0)
"""Center and width in Hounsfield units."""
SAMPLES_PER_SECOND = 2.0
"""Samples of one image per second that are assumed for an A100, for the number of cores that a run needs."""
TOLERANCE = 0.02
"""Maximum mean difference of pixels in [-1, 1]: 2.5 gray values of 8 bits; Pillow and torchvision round differently."""
Method = Callable[[], Tensor]


def texture(shape: tuple[int, ...]) -> np.ndarray:
    """Return smooth noise between 0 and 1."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=shape), 3)
    scaled: np.ndarray = (noise - noise.min()) / np.ptp(noise)
    return scaled


def write_files(folder: Path) -> dict[str, Path]:
    """Write one file of each kind and return them by their description."""
    gray = (255 * texture((1024, 1024))).astype(np.uint8)
    files = {
        "PNG, gray, 1024 x 1024": folder / "gray.png",
        "JPEG, color, 1024 x 1024": folder / "color.jpg",
        "DICOM, CT, 512 x 512, 16 bits": folder / "ct.dcm",
        "NIfTI, one slice of 512 x 512 x 64, 16 bits": folder / "ct.nii",
        "the same, compressed": folder / "ct.nii.gz",
    }
    Image.fromarray(gray).save(folder / "gray.png")
    Image.fromarray(np.stack([gray, gray[::-1], gray.T], axis=-1)).save(folder / "color.jpg", quality=92)
    values = (-1000 + 2000 * texture((512, 512))).astype(np.int16)
    write_ct(folder / "ct.dcm", values)
    volume = (-1000 + 2000 * texture((512, 512, 64))).astype(np.int16)
    for name in ("ct.nii", "ct.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / name)
    return files


def write_ct(path: Path, values: np.ndarray) -> None:
    """Write Hounsfield units as an uncompressed DICOM file."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = (
        CTImageStorage,
        meta.MediaStorageSOPInstanceUID,
        "CT",
    )
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    dataset.PixelData = (values + 1024).astype(np.uint16).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def windowed(values: np.ndarray) -> np.ndarray:
    """Return values between the limits of `WINDOW` as gray values of 8 bits."""
    low = WINDOW[0] - WINDOW[1] / 2
    gray: np.ndarray = np.clip((values - low) / WINDOW[1] * 255, 0, 255).round().astype(np.uint8)
    return gray


def gray_of(path: Path) -> np.ndarray:
    """Return the gray values of a DICOM file or of the slice of a volume, by the library of the format alone."""
    if path.suffix == ".dcm":
        dataset = pydicom.dcmread(path)
        return windowed(dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept))
    image = nibabel.load(path)
    assert isinstance(image, nibabel.Nifti1Image)
    return windowed(np.rot90(np.asarray(image.dataobj[:, :, 32]))[:, ::-1])


def methods(path: Path, size: int, folder: Path) -> dict[str, Method]:
    """Return the methods by name: ours, torchvision alone, and Pillow with the slow processor of transformers."""
    base = write_tiny("medgemma", folder / "tiny")
    args = ModelArgs("medgemma", str(base), lora_r=2, max_length=2048, image_size=size, image_token_len=SIZES[size])
    encoder = load_pretrained(args, detect()).encoder
    slow = Gemma3ImageProcessorPil(size={"height": size, "width": size}, do_pan_and_scan=False)
    is_volume = ".nii" in path.suffixes
    options: dict[str, Any] = dict(window=WINDOW) if is_volume or path.suffix == ".dcm" else {}
    options |= dict(slice=32) if is_volume else {}
    is_picture = path.suffix in (".png", ".jpg")

    def ours() -> Tensor:
        sample = Sample([Turn("user", "<image>Why?"), Turn("assistant", "no")], read_images(path, **options))
        return encoder.encode(sample).student["pixel_values"][0]

    def torchvision() -> Tensor:
        if is_picture:
            image = decode_image(str(path), ImageReadMode.RGB)
        else:
            image = torch.from_numpy(gray_of(path)).expand(3, -1, -1)
        resized = functional.resize(image, [size, size], antialias=True)
        return resized.float().div_(127.5).sub_(1)

    def pillow() -> Tensor:
        image = Image.open(path).convert("RGB") if is_picture else Image.fromarray(gray_of(path)).convert("RGB")
        pixels: Tensor = slow(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    return {"mllm": ours, "torchvision": torchvision, "Pillow": pillow}


def measure(competitors: dict[str, Method], rounds: int, images: int) -> dict[str, list[float]]:
    """Return the CPU milliseconds per image of each method in each round; exit if their pixels differ."""
    pixels = {name: method() for name, method in competitors.items()}
    for name, other in pixels.items():
        difference = float((other - pixels["mllm"]).abs().mean())
        if difference > TOLERANCE:
            sys.exit(f"the pixels of {name} differ by {difference:.3f} on average, so the times cannot be compared")
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(rounds):
        for name, method in competitors.items():
            started = time.process_time()
            for _ in range(images):
                method()
            times[name].append(1000 * (time.process_time() - started) / images)
    return times


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=20, help="images of a round")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| | size | mllm: ms | images per second | torchvision: ms | Pillow: ms | cores for an A100 |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for kind, path in write_files(Path(name)).items():
            for size in SIZES:
                times = measure(methods(path, size, Path(name)), options.rounds, options.images)
                ours = median(times["mllm"])
                cells = [kind, str(size), f"{ours:.1f} ({min(times['mllm']):.1f}-{max(times['mllm']):.1f})"]
                cells += [f"{1000 / ours:.0f}", *(f"{median(times[name]):.1f}" for name in ("torchvision", "Pillow"))]
                print(f"| {' | '.join([*cells, f'{SAMPLES_PER_SECOND * ours / 1000:.2f}'])} |", flush=True)
    print(f"\n{options.rounds} rounds of {options.images} images; {machine(1)}")


if __name__ == "__main__":
    main()
