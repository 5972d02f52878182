"""Loading: error messages for missing and damaged files, and the dtype of loaded weights."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mllm.errors import ConfigError
from mllm.models.backbone.loading import (
    explained,
    find_checkpoint,
    load_config,
    load_model,
    load_processor,
    quantization,
)


@pytest.fixture
def copy(tiny_llava: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_llava, tmp_path / "copy"))


def test_a_folder_and_a_hub_id_are_distinguished(
    tiny_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(str(tiny_llava)) == str(tiny_llava)
    assert find_checkpoint("google/medgemma-4b-it") == "google/medgemma-4b-it"
    assert find_checkpoint("gpt2") == "gpt2"
    (tmp_path / "models").mkdir()
    for name in ("ckpt/x", "./x", "a/b/c", "/nowhere/x", "models/x"):
        with pytest.raises(ConfigError, match="there is no checkpoint in"):
            find_checkpoint(name)


def test_missing_weights_name_the_download_script_and_near_names(tmp_path: Path, tiny_llava: Path) -> None:
    shutil.copytree(tiny_llava, tmp_path / "medgemma-4b-it")
    with pytest.raises(ConfigError) as caught:
        find_checkpoint(str(tmp_path / "medgemma-4b"))
    assert "bash scripts/download_medgemma.sh" in str(caught.value)
    assert "near names beside it: medgemma-4b-it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_incomplete_folders(copy: Path) -> None:
    weights = (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    with pytest.raises(ConfigError, match="no weights"):
        find_checkpoint(str(copy))
    index = {"weight_map": {"a": weights.name, "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="lacks 1 of 2 weight files .first model-00002-of-00002.safetensors."):
        find_checkpoint(str(copy))
    (copy / "config.json").rename(copy / "adapter_config.json")
    with pytest.raises(ConfigError, match="holds a LoRA adapter .that belongs into adapter_path."):
        find_checkpoint(str(copy))
    (copy / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match="holds no config.json"):
        find_checkpoint(str(copy))
    with pytest.raises(ConfigError, match="is a file"):
        find_checkpoint(str(weights))


def test_a_hub_id_without_network() -> None:
    with pytest.raises(ConfigError, match="scripts/download_medgemma.sh") as caught:
        load_config("google/medgemma-4b-it")
    assert "hf auth login" in str(caught.value) and "https://huggingface.co/google/medgemma-4b-it" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (GatedRepoError, "gated model: accept its license at https://huggingface.co/org/name"),
        (RepositoryNotFoundError, "neither"),
    ],
)
def test_a_gated_or_unknown_model_says_how_to_log_in(kind: type[Exception], sentence: str) -> None:
    response = SimpleNamespace(headers={}, request=None)  # whichever HTTP client the hub library uses
    with pytest.raises(ConfigError, match=sentence) as caught, explained("org/name"):
        try:
            raise kind("401", response=response)
        except kind as cause:
            raise OSError("You are trying to access a gated repo.") from cause  # as transformers wraps it
    assert "`hf auth login`" in str(caught.value) and "`huggingface-cli login`" in str(caught.value)


def test_old_packages_are_named_both(copy: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"] = {"type": "BPE2", "vocab": {}}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="pip install --upgrade transformers tokenizers"):
        load_processor(str(copy))


def test_damaged_files(copy: Path) -> None:
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


def test_a_checkpoint_without_an_image_processor(copy: Path) -> None:
    (copy / "processor_config.json").unlink()
    with pytest.raises(ConfigError):
        load_processor(str(copy))


def test_what_is_no_fault_of_the_user_passes_through() -> None:
    with pytest.raises(OSError, match="full"), explained("x"):
        raise OSError(errno.ENOSPC, "disk full")
    with pytest.raises(ZeroDivisionError), explained("x"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_and_freezing(tiny_llava: Path, precision: str, dtype: torch.dtype) -> None:
    model = load_model(AutoModelForImageTextToText, str(tiny_llava), precision=precision, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_an_attention_that_is_not_there(tiny_llava: Path) -> None:
    with pytest.raises(ConfigError, match="model_args.attn_implementation"):
        load_model(
            AutoModelForImageTextToText, str(tiny_llava), precision="fp32", device="cpu", attn_implementation="fast"
        )
    eager = load_model(
        AutoModelForImageTextToText, str(tiny_llava), precision="fp32", device="cpu", attn_implementation="eager"
    )
    assert eager.config._attn_implementation == "eager"


@pytest.mark.parametrize(("bits", "kind"), [(4, Linear4bit), (8, Linear8bitLt)])
def test_quantization(tiny_llava: Path, tmp_path: Path, bits: int, kind: type) -> None:
    def asked(name: str, bits: int) -> object:
        return quantization(
            load_config(name),
            load_in_4bit=bits == 4,
            load_in_8bit=bits == 8,
            precision="bf16",
            keep=["lm_head", "model.vision_tower"],
        )

    wanted = asked(str(tiny_llava), bits)
    model = load_model(
        AutoModelForImageTextToText, str(tiny_llava), precision="bf16", device="cpu", quantization_config=wanted
    )
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert all((kinds[name] is kind) == ("language" in name or "projector" in name) for name in kinds)
    if bits == 4:
        state = model.model.language_model.layers[0].mlp.up_proj.weight.quant_state
        assert (state.quant_type, state.nested, state.dtype) == ("nf4", True, torch.bfloat16)
    assert model.get_input_embeddings().weight.dtype is torch.bfloat16, "no copy to fp32"

    model.save_pretrained(tmp_path)
    assert asked(str(tmp_path), bits) is None and asked(str(tmp_path), 0) is None
    with pytest.raises(ConfigError, match="already quantized otherwise"):
        asked(str(tmp_path), 12 - bits)
    again = load_model(AutoModelForImageTextToText, str(tmp_path), precision="bf16", device="cpu")
    ids = torch.tensor([[1, 300, 301]])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_four_bits_carry_gradient_after_an_evaluation(tiny_llava: Path) -> None:
    """bitsandbytes would reorder the weights in the evaluation, where the CPU has AVX512-BF16, and cut the gradient."""
    name = str(tiny_llava)
    wanted = quantization(load_config(name), load_in_4bit=True, load_in_8bit=False, precision="fp32", keep=["lm_head"])
    model = load_model(AutoModelForImageTextToText, name, precision="fp32", device="cpu", quantization_config=wanted)
    layer = model.model.language_model.layers[0].mlp.up_proj
    assert isinstance(layer, Linear4bit)
    rows = torch.randn(3, layer.in_features)
    with torch.no_grad():
        before = layer.eval()(rows)
    after = layer.train()(rows.requires_grad_())
    torch.testing.assert_close(after, before)
    (gradient,) = torch.autograd.grad(after.square().sum(), rows)
    assert gradient.abs().sum() > 0
