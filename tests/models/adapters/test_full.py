"""Weights that train in full: those of a tower that stock transformers computes gradients for, in fp32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    SiglipConfig,
    SiglipVisionModel,
)

from mllm.config.defaults import make_model_args
from mllm.config.hardware import Hardware
from mllm.errors import ConfigError
from mllm.models.adapters.trainable import count_trainable
from mllm.models.builder.builder import load_pretrained
from mllm.protocols import Bundle
from mllm.structures import Sample, Turn
from mllm.tiny.adapter import write_tiny_adapter
from mllm.tiny.checkpoints import write_tiny

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)


def load(type: str, folder: Path, hardware: Hardware = CPU, **values: Any) -> Bundle:
    return load_pretrained(make_model_args(type, model_name_or_path=str(folder), **values), hardware)


def batch_of(bundle: Bundle) -> dict[str, torch.Tensor]:
    is_text = bundle.model.pretrained.config.is_encoder_decoder
    question = "Where?" if is_text else "<image> Where?"
    images = [] if is_text else [Image.new("RGB", (64, 48), "gray")]
    batch = bundle.encoder.pad(
        [bundle.encoder.encode(Sample([Turn("user", question), Turn("assistant", "Left.")], images))]
    )
    return {**batch.student, "labels": batch.targets["labels"]}


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("family", ["medgemma", "llava", "qwen2_vl", "gemma3n-student", "t5gemma"])
def test_full_trains_what_receives_a_gradient(family: str, tmp_path: Path) -> None:
    folder = write_tiny(family, tmp_path)
    types = {"llava": "image-text", "qwen2_vl": "image-text", "t5gemma": "seq2seq"}
    bundle = load(types.get(family, family), folder, trainable="full")
    kind: Any = AutoModelForSeq2SeqLM if family == "t5gemma" else AutoModelForImageTextToText
    stock = kind.from_pretrained(folder, dtype=torch.float32)
    stock(**batch_of(bundle)).loss.backward()
    reached = {name for name, parameter in stock.named_parameters() if parameter.grad is not None}
    unused = {name for name in reached if name.startswith("model.embed_audio.")}  # of Gemma 3n: zeros without sound
    assert trained_names(bundle.model.pretrained) == reached - unused


def test_the_last_layers_of_a_tower(tiny_llava: Path) -> None:
    wanted = {"language": {"last_layers": 1}, "vision": {"last_layers": 1}}
    model = load("image-text", tiny_llava, trainable=wanted).model.pretrained
    config = AutoConfig.from_pretrained(tiny_llava)
    language, vision = config.text_config.num_hidden_layers - 1, config.vision_config.num_hidden_layers - 2
    assert config.vision_feature_layer == -2, "the last layer of the vision tower is not read"
    layers = (f"model.language_model.layers.{language}.", f"model.vision_tower.encoder.layers.{vision}.")
    assert trained_names(model) == {name for name, _ in model.named_parameters() if name.startswith(layers)}
    with pytest.raises(ConfigError, match=r"last_layers=9, but model.language_model.layers has \d+ layers: set a "):
        load("image-text", tiny_llava, trainable={"language": {"last_layers": 9}})


def test_tied_weights_stay_tied_and_belong_to_the_language_model(tiny_medgemma: Path) -> None:
    model = load("medgemma", tiny_medgemma, trainable={"language": "full"}).model
    head, table = model.pretrained.get_output_embeddings(), model.pretrained.get_input_embeddings()
    assert head.weight is table.weight and head.weight.requires_grad
    counts = {count.tower: count for count in count_trainable(model)}
    assert counts["language"].percent == 100 and counts["vision"].parameters == counts["projector"].parameters == 0
    assert "language.embed_tokens.weight" in model.trained_state()


def test_an_untied_output_projection_is_trained_and_stored(tiny_llava: Path) -> None:
    model = load("image-text", tiny_llava, trainable={"language": "full"}).model
    assert model.pretrained.get_output_embeddings().weight.requires_grad
    assert {"language.lm_head.weight", "language.embed_tokens.weight"} <= model.trained_state().keys()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_trained_weights_are_in_fp32_and_others_in_half_precision(tiny_medgemma: Path, precision: str) -> None:
    wanted = {"language": "lora", "vision": "full", "projector": "full"}
    bundle = load("medgemma", tiny_medgemma, replace(CPU, precision=precision), trainable=wanted)
    model = bundle.model
    assert {tensor.dtype for tensor in model.parameters() if tensor.requires_grad} == {torch.float32}
    layer = model.pretrained.model.language_model.layers[0].mlp.up_proj.get_base_layer()
    assert layer.weight.dtype is {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    exact = load("medgemma", tiny_medgemma, trainable=wanted)
    batch = batch_of(bundle)
    del batch["labels"]
    with torch.no_grad(), model.computing():
        hidden = model(**batch).hidden_BLD.float()
        expected = exact.model(**batch).hidden_BLD
    torch.testing.assert_close(hidden, expected, rtol=0, atol=0.1)


def test_a_language_model_that_trains_in_full_is_loaded_without_rounding(tiny_medgemma: Path) -> None:
    model = load("medgemma", tiny_medgemma, replace(CPU, precision="bf16"), trainable="full").model
    stock = AutoModelForImageTextToText.from_pretrained(tiny_medgemma, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, stock[name]) for name, tensor in model.pretrained.state_dict().items())


def test_a_lora_in_a_tower_that_trains_in_full_is_refused(tiny_medgemma: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"puts a LoRA into the part 'vision' \(model.vision_tower.*\), which trains in"
    ):
        load("medgemma", tiny_medgemma, trainable={"language": "lora", "vision": "full"}, lora_target=".*q_proj")


def test_a_starting_lora_that_would_not_train_is_refused(tiny_medgemma: Path, tmp_path: Path) -> None:
    adapter = str(write_tiny_adapter(tiny_medgemma, tmp_path / "adapter", rank=4))
    with pytest.raises(ConfigError, match="contains a LoRA, and model_args train none: set merge_lora=True"):
        load("medgemma", tiny_medgemma, trainable="full", adapter_path=adapter)
    model = load("medgemma", tiny_medgemma, trainable="full", adapter_path=adapter, merge_lora=True, lora_r=None).model
    base = load("medgemma", tiny_medgemma, trainable="full").model.pretrained.state_dict()
    assert any(not torch.equal(tensor, base[name]) for name, tensor in model.pretrained.state_dict().items())


def test_a_part_that_a_model_of_text_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names the part 'vision', and a T5GemmaForConditionalGeneration has none"):
        load("seq2seq", write_tiny("t5gemma", tmp_path), trainable={"vision": "full"})


def test_new_weights_depend_on_the_seed_alone(tiny_medgemma: Path, tmp_path: Path) -> None:
    for file in tiny_medgemma.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(1)
    first = load("medgemma", tmp_path, trainable="full", from_scratch=True).model.pretrained.state_dict()
    state = torch.random.get_rng_state()
    again = load("medgemma", tmp_path, trainable="full", from_scratch=True).model.pretrained.state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    other = load("medgemma", tmp_path, trainable="full", from_scratch=True, init_seed=1).model.pretrained.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(first[name], other[name])
    config = AutoConfig.from_pretrained(tmp_path).get_text_config()
    assert float(first[name].std()) == pytest.approx(config.initializer_range, rel=0.1)


def test_a_new_vision_tower_has_the_config_of_its_part_of_the_checkpoint(tmp_path: Path) -> None:
    """The config.json is that of a SigLIP with a text tower, of which the model has none."""
    folder = write_tiny("medsiglip", tmp_path / "siglip")
    heads = dict(measures=dict(type="RegressionHead", measures=["EF"], views=["ED"]))
    bundle = load("medsiglip", folder, trainable="full", from_scratch=True, init_seed=3, heads=heads)
    config = SiglipConfig.from_pretrained(folder).vision_config
    config.vision_use_head = False
    torch.manual_seed(3)
    stock = SiglipVisionModel(config).state_dict()
    model = bundle.model.pretrained.state_dict()
    assert model.keys() == stock.keys()
    assert all(torch.equal(model[name], tensor) for name, tensor in stock.items())
