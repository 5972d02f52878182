"""Tests of loading: messages for damaged files, dtypes of loaded weights, and quantization."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from mllm.errors import ConfigError
from mllm.models.backbone.loading import load_config, load_model, load_processor, quantization


def test_a_hub_id_without_network_names_the_download_command() -> None:
    with pytest.raises(ConfigError, match="scripts/download_medgemma.sh") as excinfo:
        load_config("google/medgemma-4b-it")
    assert "hf auth login" in str(excinfo.value) and "https://huggingface.co/google/medgemma-4b-it" in str(
        excinfo.value
    )


def test_a_newer_tokenizer_file_names_both_packages(copy: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"] = {"type": "BPE2", "vocab": {}}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="pip install --upgrade transformers tokenizers"):
        load_processor(str(copy))


def test_damaged_files_are_reported(copy: Path) -> None:
    config = copy / "config.json"
    good = config.read_text()
    config.write_text('{"model_type": "gemma9"}')
    with pytest.raises(ConfigError, match="does not know the architecture"):
        load_config(str(copy))
    config.write_text("{not json")
    with pytest.raises(ConfigError, match="cannot be loaded: .*not a valid JSON"):
        load_config(str(copy))
    config.write_text(good)
    weights = copy / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # not a view of the file
    beginning = weights.read_bytes()[:1000]
    weights.unlink()
    weights.write_bytes(beginning)
    with pytest.raises(ConfigError, match="damaged or incomplete"):
        load_model(AutoModelForImageTextToText, str(copy), precision="fp32", device="cpu")
    fewer = {name: tensor for name, tensor in tensors.items() if not name.endswith("projector.linear_1.weight")}
    save_file(fewer, weights, metadata={"format": "pt"})
    with pytest.raises(
        ConfigError, match="lack 1 tensors of its architecture .first model.multi_modal_projector.linear_1"
    ):
        load_model(AutoModelForImageTextToText, str(copy), precision="fp32", device="cpu")


def test_a_config_is_read_again_when_its_file_changes_and_belongs_to_the_caller(copy: Path) -> None:
    config = load_config(str(copy))
    assert config.to_dict() == AutoConfig.from_pretrained(copy).to_dict()
    config.text_config.hidden_size = 1
    assert load_config(str(copy)).text_config.hidden_size > 1
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(values | {"image_seq_length": 9}))
    assert load_config(str(copy)).image_seq_length == 9 != config.image_seq_length


def test_a_checkpoint_without_an_image_processor_is_refused(copy: Path) -> None:
    (copy / "processor_config.json").unlink()
    with pytest.raises(ConfigError):
        load_processor(str(copy))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_loaded_weights_are_frozen_and_have_the_dtype_of_the_precision(
    tiny_llava: Path, precision: str, dtype: torch.dtype
) -> None:
    model = load_model(AutoModelForImageTextToText, str(tiny_llava), precision=precision, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_an_unknown_attention_implementation_is_refused(tiny_llava: Path) -> None:
    with pytest.raises(ConfigError, match="model_args.attn_implementation"):
        load_model(
            AutoModelForImageTextToText, str(tiny_llava), precision="fp32", device="cpu", attn_implementation="fast"
        )
    eager = load_model(
        AutoModelForImageTextToText, str(tiny_llava), precision="fp32", device="cpu", attn_implementation="eager"
    )
    assert eager.config._attn_implementation == "eager"


@pytest.mark.parametrize(("bits", "kind"), [(4, Linear4bit), (8, Linear8bitLt)])
def test_quantization_converts_the_selected_linear_layers_and_survives_saving(
    tiny_llava: Path, tmp_path: Path, bits: int, kind: type
) -> None:
    def settings(name: str, bits: int) -> object:
        return quantization(
            load_config(name),
            load_in_4bit=bits == 4,
            load_in_8bit=bits == 8,
            precision="bf16",
            keep=["lm_head", "model.vision_tower"],
        )

    expected = settings(str(tiny_llava), bits)
    model = load_model(
        AutoModelForImageTextToText, str(tiny_llava), precision="bf16", device="cpu", quantization_config=expected
    )
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert all((kinds[name] is kind) == ("language" in name or "projector" in name) for name in kinds)
    if bits == 4:
        state = model.model.language_model.layers[0].mlp.up_proj.weight.quant_state
        assert (state.quant_type, state.nested, state.dtype) == ("nf4", True, torch.bfloat16)
    assert model.get_input_embeddings().weight.dtype is torch.bfloat16, "no copy to fp32"

    model.save_pretrained(tmp_path)
    assert settings(str(tmp_path), bits) is None and settings(str(tmp_path), 0) is None
    with pytest.raises(ConfigError, match="already quantized in another way"):
        settings(str(tmp_path), 12 - bits)
    again = load_model(AutoModelForImageTextToText, str(tmp_path), precision="bf16", device="cpu")
    ids = torch.tensor([[1, 300, 301]])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_4_bit_layers_have_a_gradient_after_an_evaluation(tiny_llava: Path) -> None:
    """On a CPU with AVX512-BF16, bitsandbytes would reorder the weights in an evaluation, which stops the gradient."""
    name = str(tiny_llava)
    expected = quantization(
        load_config(name), load_in_4bit=True, load_in_8bit=False, precision="fp32", keep=["lm_head"]
    )
    model = load_model(AutoModelForImageTextToText, name, precision="fp32", device="cpu", quantization_config=expected)
    layer = model.model.language_model.layers[0].mlp.up_proj
    assert isinstance(layer, Linear4bit)
    rows = torch.randn(3, layer.in_features)
    with torch.no_grad():
        before = layer.eval()(rows)
    after = layer.train()(rows.requires_grad_())
    torch.testing.assert_close(after, before)
    (gradient,) = torch.autograd.grad(after.square().sum(), rows)
    assert gradient.abs().sum() > 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux lists mapped files")
def test_a_quantized_model_does_not_keep_its_files_in_memory(copy: Path) -> None:
    """A weight that was read unchanged is a view of the mapped file, and would keep the pages of all others."""

    def is_mapped() -> bool:
        return str(copy / "model.safetensors") in Path("/proc/self/maps").read_text()

    name = str(copy)
    kind = AutoModelForImageTextToText
    whole = load_model(kind, name, precision="fp32", device="cpu")
    assert is_mapped(), "unchanged weights are views of the file"
    expected = {key: tensor.clone() for key, tensor in whole.state_dict().items()}
    del whole
    gc.collect()
    assert not is_mapped()
    settings = quantization(
        load_config(name), load_in_4bit=True, load_in_8bit=False, precision="fp32", keep=["lm_head"]
    )
    model = load_model(kind, name, precision="fp32", device="cpu", quantization_config=settings)
    gc.collect()
    assert not is_mapped()
    norm = "model.language_model.norm.weight"
    assert torch.equal(model.state_dict()[norm], expected[norm])
