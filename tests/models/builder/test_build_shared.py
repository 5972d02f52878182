"""What all builders share: adapter, precision and encoder are those that `model_args` and the hardware ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.builder.builder import load_pretrained
from mllm.models.half_safe import HalfSafeLinear
from mllm.structures import Sample, Turn
from mllm.testing.tiny_adapter import write_tiny_adapter

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
IDS = torch.tensor([[1, 300, 301, 302]])


def args(folder: Path, **changes: object) -> ModelArgs:
    return ModelArgs(type="image-text", model_name_or_path=str(folder), **{"lora_r": 4, **changes})


def hidden(asked: ModelArgs, hardware: Hardware = CPU) -> torch.Tensor:
    with torch.no_grad():
        return load_pretrained(asked, hardware).model(input_ids=IDS).hidden_BLD


@pytest.mark.parametrize(
    ("precision", "stored"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision(tiny_llava: Path, precision: str, stored: torch.dtype) -> None:
    model = load_pretrained(args(tiny_llava), replace(CPU, precision=precision)).model
    base = model.pretrained.model.language_model.layers[0].mlp.up_proj.get_base_layer()
    assert base.weight.dtype is stored
    assert isinstance(base, HalfSafeLinear) == (precision == "fp16")
    assert {tensor.dtype for name, tensor in model.named_parameters() if "lora_" in name} == {torch.float32}


def test_half_precision_stays_near_full_precision(tiny_llava: Path) -> None:
    half = hidden(args(tiny_llava), replace(CPU, precision="fp16"))
    assert half.dtype is torch.float32
    torch.testing.assert_close(half, hidden(args(tiny_llava)), rtol=0, atol=0.02)


def test_a_starting_adapter(tiny_llava: Path, tmp_path: Path) -> None:
    adapter = str(write_tiny_adapter(tiny_llava, tmp_path / "adapter", rank=4))
    plain = hidden(args(tiny_llava))
    continued = hidden(args(tiny_llava, adapter_path=adapter))
    assert (continued - plain).abs().max() > 1e-2
    merged = hidden(args(tiny_llava, adapter_path=adapter, merge_lora=True, lora_r=None))
    torch.testing.assert_close(merged, continued, rtol=1e-4, atol=1e-4)


def test_the_encoder_is_told_its_options(tiny_llava: Path) -> None:
    bundle = load_pretrained(args(tiny_llava, max_length=77, system="Be brief.", turn_end="</s>"), CPU)
    assert bundle.encoder.max_length == 77
    text = bundle.encoder.tokenizer.decode(
        bundle.encoder.encode(Sample([Turn("user", "What?"), Turn("assistant", "CT")])).student["input_ids"]
    )
    assert "Be brief." in text and text.rstrip().endswith("</s>")


def test_a_target_that_matches_nothing(tiny_llava: Path) -> None:
    with pytest.raises(ConfigError, match="lora_target"):
        load_pretrained(args(tiny_llava, lora_target="langage"), CPU)
