"""Recorded outputs of vision layers, against the hidden states returned by transformers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaNextImageProcessor

from mllm.errors import ConfigError
from mllm.models.backbone.vision_layers import VisionLayers, fuse_language_layers

PIXELS = {"small_gemma": (2, 3, 224, 224), "tiny_llava": (2, 3, 112, 112)}


@pytest.fixture(params=list(PIXELS))
def recorded_model(request):
    """A model with its vision tower, its processor and two images."""
    folder = request.getfixturevalue(request.param)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    pixels = torch.randn(PIXELS[request.param], generator=torch.Generator().manual_seed(0))
    return model, model.model.vision_tower, AutoProcessor.from_pretrained(folder), pixels


def test_every_layers_patches_are_recorded_in_the_block(recorded_model):
    model, tower, processor, pixels = recorded_model
    layers = VisionLayers(tower, model.config.vision_config, processor, "MaskHead")
    with layers.recorded() as recorded, torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
    assert len(recorded) == len(layers) == 2
    for layer, state in zip(recorded, states[1:], strict=True):
        # CLIP has a class token before the patches, SigLIP has none.
        assert torch.equal(layer, state[:, -(layers.grid**2) :])
        assert layer.shape == (2, layers.grid**2, layers.width)
    assert [blank.shape for blank in layers.blank(pixels)] == [(1, *recorded[0].shape[1:])] * 2
    tower(pixels)
    with layers.recorded() as recorded:
        pass
    assert recorded == [], "a forward outside of a block was kept"


def test_a_tower_without_a_fixed_grid_is_refused(tiny_qwen2_vl):
    model = AutoModelForImageTextToText.from_pretrained(tiny_qwen2_vl)
    with pytest.raises(
        ConfigError, match="one square grid of patches, which Qwen2VisionTransformer.* does not: remove"
    ):
        processor = AutoProcessor.from_pretrained(tiny_qwen2_vl)
        VisionLayers(model.model.visual, model.config.vision_config, processor, "MaskHead")


def test_a_processor_that_cuts_images_into_tiles_is_refused(tiny_llava):
    model = AutoModelForImageTextToText.from_pretrained(tiny_llava)
    square = {"height": 112, "width": 112}
    tiles = LlavaNextImageProcessor(
        size={"shortest_edge": 112}, crop_size=square, image_grid_pinpoints=[[112, 224], [224, 112]]
    )
    with pytest.raises(ConfigError, match="one square grid of patches"):
        processor = SimpleNamespace(image_processor=tiles)
        VisionLayers(model.model.vision_tower, model.config.vision_config, processor, "MaskHead")


def projected(model, pixels):
    """Return the input of the projector for images."""
    inputs = []
    hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    model.model.get_image_features(pixel_values=pixels)
    hook.remove()
    return inputs[0]


@pytest.mark.parametrize("layer", [-2, 1])
def test_the_projector_reads_the_weighted_states(tiny_llava, layer):
    model = AutoModelForImageTextToText.from_pretrained(tiny_llava)
    model.config.vision_feature_layer = layer
    pixels = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[:-1]
        fusion = fuse_language_layers(model, model.model.vision_tower)
        fusion.coefficients.copy_(torch.tensor([1.0, -0.5]))
        weights = torch.tensor([1.0, -0.5]).softmax(dim=0)
        expected = sum(weight * state for weight, state in zip(weights, states, strict=True))
        torch.testing.assert_close(projected(model, pixels), expected[:, 1:])
        torch.testing.assert_close(projected(model, pixels[:1]), expected[:1, 1:])


def test_checkpointing_does_not_change_the_gradients_of_fusion(tiny_llava):
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_pretrained(tiny_llava).requires_grad_(False)
        fusion = fuse_language_layers(model, model.model.vision_tower)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r".*vision_tower.*\.layers\.0\..*\.fc1"))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        if checkpointed:
            model.train().gradient_checkpointing_enable({"use_reentrant": False})
            assert model.model.vision_tower.is_gradient_checkpointing
        pixels = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
        projected(model, pixels).square().sum().backward()
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        gradients.append([fusion.coefficients.grad, *(parameter.grad for parameter in trained)])
    assert len(gradients[0]) == 3 and all(gradient.any() for gradient in gradients[0])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_fusion_keeps_no_state_after_a_forward_pass(tiny_llava):
    model = AutoModelForImageTextToText.from_pretrained(tiny_llava)
    tower = model.model.vision_tower
    fuse_language_layers(model, tower)
    projected(model, torch.randn(1, 3, 112, 112))
    (mix,) = tower._forward_hooks.values()
    held = [cell.cell_contents for cell in mix.__closure__ if isinstance(cell.cell_contents, list)]
    assert held == [[]]
    layer = tower.encoder.layers[0]
    checkpoint(layer, torch.randn(1, 65, 64), None, use_reentrant=False)
    assert held == [[]], "a layer that is computed again on its own was kept"


def test_a_model_whose_projector_reads_no_single_layer_is_refused(small_gemma):
    model = AutoModelForImageTextToText.from_pretrained(small_gemma)
    with pytest.raises(ConfigError, match="fuse_vision_layers=True needs a LLaVA, .* Gemma3ForConditionalGeneration"):
        fuse_language_layers(model, model.model.vision_tower)
