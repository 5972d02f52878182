"""Cache on disk for the features of a frozen model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mllm.files import replaced_path
from mllm.protocols import Model
from mllm.structures import Outputs

CHUNK = 2**24
"""Number of bytes that are hashed at a time."""


class FeatureCache:
    """Tensors of images, in a folder that several runs and processes can share.

    A file holds the tensors of one image, or of the images of one sample in their order. Files are written atomically.
    A damaged file counts as missing.

    Args:
        folder: Folder of the cache.
        model: Fingerprint of the model that computes the tensors; see `fingerprint`.
    """

    def __init__(self, folder: str | Path, model: str) -> None:
        self.folder = Path(folder) / model[:16]
        self.model = model

    def path(self, images: Sequence[Image]) -> Path:
        """Return the path of the file of some images. It depends on their sizes, modes and pixels only."""
        digest = hashlib.blake2b(digest_size=20)
        for image in images:
            digest.update(f"{self.model} {image.mode} {image.size} ".encode())
            digest.update(image.tobytes())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def read(self, images: Sequence[Image]) -> dict[str, Tensor] | None:
        """Return the tensors of some images; None if the file is missing or damaged."""
        path = self.path(images)
        try:
            return load_file(path)
        except (OSError, SafetensorError):
            return None

    def write(self, images: Sequence[Image], tensors: dict[str, Tensor]) -> None:
        """Store the tensors of some images."""
        self.store(self.path(images), tensors)

    @staticmethod
    def store(path: Path, tensors: dict[str, Tensor]) -> None:
        """Write the tensors of the images whose path is `path`."""
        with replaced_path(path) as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)


class CachedTeacher(nn.Module):
    """Replacement of a teacher whose taps are cached: it returns its inputs."""

    def forward(self, **taps: Tensor) -> Outputs:
        """Return the taps [B, V, C, g, g] by module path as outputs of a teacher."""
        return Outputs(hidden_BLD=next(iter(taps.values())), taps=taps)


def fingerprint(model: nn.Module | Model, *, reads: Callable[[str], bool] = lambda name: True, **settings: Any) -> str:
    """Return a hash of the weights of a model and of the settings that influence its outputs.

    Args:
        model: The model.
        reads: Returns True for the name of a weight that influences the outputs.
        settings: The settings.
    """
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=20)
    digest.update(torch.__version__.encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        if not reads(name):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
        flat = tensor.detach().contiguous().flatten().view(torch.uint8)
        for part in flat.split(CHUNK):
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()
