"""Reader of LLaVA's projector files: one Linear layer, or two with a GELU between them."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mllm.errors import ConfigError

SINGLE = {"weight", "bias"}
DOUBLE = {
    "0.weight": "linear_1.weight",
    "0.bias": "linear_1.bias",
    "2.weight": "linear_2.weight",
    "2.bias": "linear_2.bias",
}
"""Names of the two layers in LLaVA -> in transformers."""
ACTIVATIONS = {False: "gelu", True: "linear"}
"""True for one Linear layer, False for two -> `projector_hidden_act` of transformers' LlavaConfig."""


def read_projector(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a projector in a `.bin` or `.safetensors` file, by LLaVA's names without their prefix.

    Raises `ConfigError` if the file cannot be read or does not contain one of the two kinds of projectors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"model_args.pretrain_mm_mlp_adapter: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
        raise ConfigError(f"{path} cannot be read as tensors ({error}): download it again") from error
    if not isinstance(state, dict):
        raise ConfigError(f"{path} has no named tensors, so it is not a projector")
    return projector_tensors(state, str(path))


def projector_tensors(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the tensors by the part of their name after `mm_projector.`; raise `ConfigError` for an unknown kind.

    `source` is the file or checkpoint, for messages.
    """
    tensors = {name.rpartition("mm_projector.")[2]: tensor for name, tensor in state.items() if "mm_projector." in name}
    if tensors.keys() not in (SINGLE, DOUBLE.keys()):
        names = ", ".join(sorted(tensors or state, key=lambda name: (name in DOUBLE, name))[:4]) or "nothing"
        raise ConfigError(
            f"{source} has {names}, but a projector has mm_projector.weight and .bias (Shikra), or mm_projector.0 and "
            f"mm_projector.2 (LLaVA 1.5)"
        )
    return tensors


def is_single(tensors: dict[str, Tensor]) -> bool:
    """Return True if a projector is one Linear layer."""
    return tensors.keys() == SINGLE


def to_llava(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the names in the LLaVA of transformers. A single layer is followed by an identity."""
    if not is_single(tensors):
        return {DOUBLE[name]: tensor for name, tensor in tensors.items()}
    weight, bias = tensors["weight"], tensors["bias"]
    return {
        "linear_1.weight": weight,
        "linear_1.bias": bias,
        "linear_2.weight": torch.eye(len(weight), dtype=weight.dtype),
        "linear_2.bias": torch.zeros_like(bias),
    }
