"""Common parts of all builders: adapter, precision and encoder follow from `model_args` and the hardware."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.backbone.half_safe import HalfSafeLinear
from mllm.models.builder.build_text import build_causal_lm
from mllm.models.builder.builder import load_pretrained
from mllm.structures import Sample, Turn
from mllm.tiny.adapter import write_tiny_adapter
from mllm.tiny.checkpoints import write_tiny

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
IDS = torch.tensor([[1, 300, 301, 302]])


def args(folder: Path, **changes: object) -> ModelArgs:
    return ModelArgs(type="image-text", model_name_or_path=str(folder), **{"lora_r": 4, **changes})


def hidden(model_args: ModelArgs, hardware: Hardware = CPU) -> torch.Tensor:
    with torch.no_grad():
        return load_pretrained(model_args, hardware).model(input_ids=IDS).hidden_BLD


@pytest.mark.parametrize(
    ("precision", "stored"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision(tiny_llava: Path, precision: str, stored: torch.dtype) -> None:
    model = load_pretrained(args(tiny_llava), replace(CPU, precision=precision)).model
    base = model.pretrained.model.language_model.layers[0].mlp.up_proj.get_base_layer()
    assert base.weight.dtype is stored
    assert isinstance(base, HalfSafeLinear) == (precision == "fp16")
    assert {tensor.dtype for name, tensor in model.named_parameters() if "lora_" in name} == {torch.float32}


def test_half_precision_is_close_to_full_precision(tiny_llava: Path) -> None:
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


def test_options_reach_the_encoder(tiny_llava: Path) -> None:
    bundle = load_pretrained(args(tiny_llava, max_length=77, system="Be brief.", turn_end="</s>"), CPU)
    assert bundle.encoder.max_length == 77
    text = bundle.encoder.tokenizer.decode(
        bundle.encoder.encode(Sample([Turn("user", "What?"), Turn("assistant", "CT")])).student["input_ids"]
    )
    assert "Be brief." in text and text.rstrip().endswith("</s>")


def test_a_target_that_matches_nothing(tiny_llava: Path) -> None:
    with pytest.raises(ConfigError, match="lora_target"):
        load_pretrained(args(tiny_llava, lora_target="langage"), CPU)


HEADS = {"box": {"type": "BoxHead", "hidden": 32}, "mask": {"type": "MaskHead", "dim": 32}}


def test_heads_add_their_tokens_and_configure_the_encoder(tiny_llava: Path) -> None:
    bundle = load_pretrained(args(tiny_llava, heads=HEADS), CPU)
    assert set(bundle.model.heads) == {"box", "mask"} and bundle.model.rows is not None
    assert bundle.encoder.marks.mask_size == bundle.model.mask_head.size == 32
    ids = bundle.encoder.tokenizer.convert_tokens_to_ids(["<loc>", "<obj_vis_s>", "<obj_vis_e>"])
    assert sorted(ids) == bundle.model.rows.ids.tolist() and bundle.encoder.object_id == ids[0]
    alone = load_pretrained(args(tiny_llava, heads={"box": HEADS["box"]}), CPU)
    assert set(alone.model.heads) == {"box"} and alone.encoder.marks.mask_size is None and alone.model.layers is None


def test_heads_and_rows_are_initialized_equally_in_every_process(tiny_llava: Path) -> None:
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(load_pretrained(args(tiny_llava, heads=HEADS), CPU).model.trained_state())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_heads_and_rows_are_fp32_whatever_the_weights(tiny_llava: Path, precision: str) -> None:
    model_args = args(tiny_llava, heads=HEADS, fuse_vision_layers=True)
    bundle = load_pretrained(model_args, replace(CPU, precision=precision))
    assert {tensor.dtype for tensor in bundle.model.trained_state().values()} == {torch.float32}
    parts = {name.partition(".")[0] for name in bundle.model.trained_state()}
    assert parts == {"heads", "rows", "fusion"}, "the projector of this type is frozen"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"heads": {"box": {"type": "BoxHead", "hiden": 4}}}, "unknown key 'hiden' in model_args.heads.box"),
        ({"heads": {"box": {"type": "BoxHed"}}}, "unknown type 'BoxHed' in registry heads.*BoxHead"),
        ({"box_format": {"type": "perception_token"}}, "box_format perception_token needs model_args.heads"),
        ({"heads": HEADS, "box_format": {"type": "location_tokens"}}, "location_tokens writes boxes as text"),
    ],
)
def test_impossible_heads_are_refused(tiny_llava: Path, changes: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_pretrained(args(tiny_llava, **changes), CPU)


def test_a_tower_without_a_grid_has_box_heads_only(tiny_qwen2_vl: Path) -> None:
    bundle = load_pretrained(args(tiny_qwen2_vl, heads={"box": HEADS["box"]}), CPU)
    assert set(bundle.model.heads) == {"box"}
    with pytest.raises(ConfigError, match="one square grid of patches, .* remove the MaskHead"):
        load_pretrained(args(tiny_qwen2_vl, heads=HEADS), CPU)


@pytest.mark.parametrize("name", ["qwen2_vl", "internvl"])
def test_a_mixture_of_layers_is_refused_before_weights_are_loaded(name: str, tmp_path: Path) -> None:
    folder = write_tiny(name, tmp_path / name)
    (folder / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ConfigError, match=f"fuse_vision_layers=True needs a LLaVA, .* architecture '{name}'"):
        load_pretrained(args(folder, fuse_vision_layers=True), CPU)


@pytest.mark.parametrize("changes", [{"heads": HEADS}, {"fuse_vision_layers": True}])
def test_options_for_images_are_refused_for_a_text_model(tmp_path: Path, changes: dict) -> None:
    folder = write_tiny("llama", tmp_path / "llama")
    (key,) = changes
    with pytest.raises(
        ConfigError, match=f"model_args.{key} is only possible with type=.*, and the type is 'causal-lm'"
    ):
        build_causal_lm(replace(args(folder, **changes), type="causal-lm"), CPU)


def test_a_tower_of_another_size_gives_masks_of_another_size(tiny_medgemma: Path) -> None:
    model_args = args(tiny_medgemma, heads=HEADS, image_size=112, image_token_len=16)
    assert load_pretrained(replace(model_args, type="medgemma"), CPU).model.mask_head.size == 4 * 112 // 14
