"""Tiny LLaMA and CLIP checkpoints, and checkpoints in the layout of LLaVA's and Shikra's own code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from mllm.tiny.checkpoints import write_tiny

SHIKRA_TOKENS = ["<im_patch>", "<im_start>", "<im_end>"]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with another width than the other tiny models."""
    widths = {"hidden_size": 192, "num_attention_heads": 6}
    return write_tiny("llama", tmp_path_factory.mktemp("llama") / "llama", text=widths)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of 112 pixels."""
    return write_tiny("clip", tmp_path_factory.mktemp("clip") / "clip")


def drawn_projector(single: bool, width: int = 192) -> dict[str, torch.Tensor]:
    """Return a random projector with the names of LLaVA."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"": (width, 64)} if single else {"0.": (width, 64), "2.": (width, width)}
    state = {}
    for part, shape in shapes.items():
        state[f"model.mm_projector.{part}weight"] = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        state[f"model.mm_projector.{part}bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    return state


@pytest.fixture(scope="session")
def make_projector() -> Callable[..., dict[str, torch.Tensor]]:
    """A function that returns a random projector of one or two layers."""
    return drawn_projector


@pytest.fixture
def original(tiny_llama: Path, tiny_clip: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes an original checkpoint of LLaVA 1.5, or of Shikra with its tokens and one Linear layer."""

    def write(is_shikra: bool, name: str = "original", **extra: torch.Tensor) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        model = LlamaForCausalLM.from_pretrained(tiny_llama)
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        if is_shikra:
            tokenizer.add_tokens(SHIKRA_TOKENS, special_tokens=True)
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        tokenizer.save_pretrained(folder)
        state = {**model.state_dict(), **drawn_projector(single=is_shikra), **extra}
        names = sorted(state)
        for number, part in enumerate((names[::2], names[1::2]), 1):
            torch.save({key: state[key] for key in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
        config = model.config.to_dict() | {
            "model_type": "shikra" if is_shikra else "llava",
            "mm_vision_tower": str(tiny_clip),
            "mm_vision_select_layer": -2,
            "mm_hidden_size": 64,
            "mm_use_im_start_end": is_shikra,
        }
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write
