"""Cache on disk for the features of a frozen model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mllm.files import replaced_path
from mllm.structures import Model, Outputs

CHUNK = 2**24
"""Number of bytes that are hashed at a time."""


class FeatureCache:
    """Tensors of images, one file per image, in a folder that several runs can share.

    Files are written atomically. A damaged file counts as missing.

    Args:
        folder: Folder of the cache.
        teacher: Fingerprint of the model that computes the tensors; see `fingerprint`.
    """

    def __init__(self, folder: str | Path, teacher: str) -> None:
        self.folder = Path(folder) / teacher[:16]
        self.teacher = teacher

    def path(self, image: Image) -> Path:
        """Return the path of the file of an image. It depends on size, mode and pixels of the image only."""
        digest = hashlib.blake2b(f"{self.teacher} {image.mode} {image.size} ".encode(), digest_size=20)
        digest.update(image.tobytes())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def read(self, image: Image) -> dict[str, Tensor] | None:
        """Return the tensors of an image; None if the file is missing or damaged."""
        path = self.path(image)
        try:
            return load_file(path)
        except (OSError, SafetensorError):
            return None

    def write(self, image: Image, tensors: dict[str, Tensor]) -> None:
        """Store the tensors of an image."""
        path = self.path(image)
        with replaced_path(path) as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)


class CachedTeacher(nn.Module):
    """Replacement of a teacher whose taps are cached: it returns its inputs."""

    def forward(self, **taps: Tensor) -> Outputs:
        """Return the taps [B, V, C, g, g] by module path as outputs of a teacher."""
        return Outputs(hidden_BLD=next(iter(taps.values())), taps=taps)


def fingerprint(model: nn.Module | Model, **settings: Any) -> str:
    """Return a hash of the weights of a model and of the settings that influence its outputs."""
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=20)
    digest.update(torch.__version__.encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
        flat = tensor.detach().contiguous().flatten().view(torch.uint8)
        for part in flat.split(CHUNK):
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()
