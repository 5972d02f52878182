"""Composed LLaVAs: sizes follow from the parts, whose weights are neither copied nor changed."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPConfig, CLIPVisionModel, LlamaForCausalLM, LlavaForConditionalGeneration

from mllm.errors import ConfigError
from mllm.models.shikra.shikra import clip_vision_config, compose, load_llava_processor
from mllm.tiny.checkpoints import write_tiny


@pytest.fixture
def parts(tiny_llama, tiny_clip):
    vision = CLIPVisionModel.from_pretrained(tiny_clip)
    processor = load_llava_processor(str(tiny_llama), str(tiny_clip), vision.config)
    return LlamaForCausalLM.from_pretrained(tiny_llama), vision, processor


def test_the_parts_are_shared_and_described_by_the_config(parts):
    language, vision, processor = parts
    before = {name: tensor.clone() for name, tensor in language.state_dict().items()}
    model = compose(language, vision, processor, feature_layer=-2)
    assert model.model.language_model is language.model and model.model.vision_tower is vision
    config = model.config
    assert (config.text_config.hidden_size, config.vision_config.hidden_size, config.image_seq_length) == (192, 64, 64)
    assert model.model.multi_modal_projector.linear_1.weight.shape == (192, 64)
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in model.parameters())
    for name, tensor in language.state_dict().items():
        assert torch.equal(tensor[: len(before[name])], before[name]), name
    old = len(before["lm_head.weight"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = language.state_dict()[name][old:]
        assert len(rows) == 2
        torch.testing.assert_close(rows, before[name].mean(dim=0).expand(2, -1))


@torch.inference_mode()
def test_transformers_loads_the_saved_model(parts, tmp_path):
    language, vision, processor = parts
    model = compose(language, vision, processor, feature_layer=-1, activation="linear")
    model.save_pretrained(tmp_path)
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert stock.config.vision_feature_layer == -1 and stock.config.projector_hidden_act == "linear"
    ids = torch.tensor([[1, *[processor.image_token_id] * 64, 300, 301]])
    pixels = torch.randn(1, 3, 112, 112)
    ours, theirs = (one(input_ids=ids, pixel_values=pixels).logits for one in (model, stock))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_tied_tables_stay_tied(tiny_clip, tmp_path):
    folder = write_tiny("llama", tmp_path / "tied", text={"tie_word_embeddings": True})
    language, vision = LlamaForCausalLM.from_pretrained(folder), CLIPVisionModel.from_pretrained(tiny_clip)
    processor = load_llava_processor(str(folder), str(tiny_clip), vision.config)
    model = compose(language, vision, processor, feature_layer=-2)
    assert model.config.tie_word_embeddings
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_another_vision_tower_is_refused(tiny_llama):
    config = CLIPConfig()
    assert clip_vision_config(config, "x") is config.vision_config
    assert clip_vision_config(config.vision_config, "x") is config.vision_config
    with pytest.raises(ConfigError, match="vision_tower 'x' is a 'llama' model"):
        clip_vision_config(LlamaForCausalLM.from_pretrained(tiny_llama).config, "x")
