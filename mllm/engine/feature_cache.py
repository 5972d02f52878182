"""What a teacher sees of each image, computed once and kept on the disk, bit by bit what it would give again."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mllm.structures import Model, Outputs

CHUNK = 2**24
"""Bytes of a tensor that are hashed at a time."""


class FeatureCache:
    """Tensors by image, one file each, below a folder that any number of runs share.

    `teacher` says what computed them (see `fingerprint`): the same image has another key for another teacher. A file
    appears by one rename, so that what a killed run leaves is whole; a damaged one counts as absent.
    """

    def __init__(self, folder: str | Path, teacher: str) -> None:
        self.folder = Path(folder) / teacher[:16]
        self.teacher = teacher

    def path(self, image: Image) -> Path:
        """Where the tensors of an image lie: by its size and pixels, whatever file it comes from."""
        digest = hashlib.blake2b(f"{self.teacher} {image.mode} {image.size} ".encode(), digest_size=20)
        digest.update(image.tobytes())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def read(self, image: Image) -> dict[str, Tensor] | None:
        """The tensors of an image; None where there are none, or where their file is damaged."""
        path = self.path(image)
        try:
            return load_file(path)
        except (OSError, SafetensorError):
            return None

    def write(self, image: Image, tensors: dict[str, Tensor]) -> None:
        """Keeps the tensors of an image."""
        path = self.path(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        try:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


class CachedTeacher(nn.Module):
    """Stands in for a teacher whose taps were computed before: it gives back what it is given."""

    def forward(self, **taps: Tensor) -> Outputs:
        """Taps [B, V, C, g, g] by path, as the teacher's own forward gives them."""
        return Outputs(hidden_BLD=next(iter(taps.values())), taps=taps)


def fingerprint(model: nn.Module | Model, **settings: Any) -> str:
    """A digest of a model's weights and of `settings`: what else decides the bits of what it gives."""
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=20)
    digest.update(torch.__version__.encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
        flat = tensor.detach().contiguous().flatten().view(torch.uint8)
        for part in flat.split(CHUNK):
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()
