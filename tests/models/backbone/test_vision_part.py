"""Vision parts of models, against the same modules of the full model."""

import pytest
import torch
from transformers import (
    AutoConfig,
    Gemma3ForConditionalGeneration,
    Gemma3nForConditionalGeneration,
    SiglipVisionModel,
)

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.models.backbone.vision_part import skeleton
from mllm.models.builder.build_family import refuse_other_architectures

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
WHOLE = {
    "tiny_student": (Gemma3nForConditionalGeneration, 96),
    "tiny_medgemma": (Gemma3ForConditionalGeneration, 896),
    "tiny_medsiglip": (SiglipVisionModel, 112),
}


@pytest.fixture(params=WHOLE)
def folder(request):
    return request.param, request.getfixturevalue(request.param)


def _load(path):
    args = ModelArgs(_record(path).type, str(path), part="vision")
    return _record(path).load(args, CPU, None)


def _record(path):
    """Return the record of the vision part for a checkpoint."""
    model_type = AutoConfig.from_pretrained(path).model_type
    parts = [FAMILIES.find(family.type, "vision") for family in FAMILIES if family.has("part")]
    return next(part for part in parts if model_type in part.model_types)


@torch.no_grad()
def test_features_are_bit_equal_to_those_of_the_full_model(folder):
    name, path = folder
    kind, side = WHOLE[name]
    whole, part = kind.from_pretrained(path).eval(), _load(path)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    features = part.get_image_features(images).pooler_output
    if kind is SiglipVisionModel:
        assert torch.equal(features, whole(images).last_hidden_state)
    else:
        assert torch.equal(features, whole.get_image_features(images).pooler_output)


def test_only_tower_and_projector_are_in_memory(folder):
    name, path = folder
    part = _load(path)
    towers = _record(path).towers(part).values()
    names = [name for name, _ in (*part.named_parameters(), *part.named_buffers())]
    assert names and all(name.startswith(tuple(towers)) for name in names)
    assert not any(word in name for name in names for word in ("language", "lm_head", "audio", "text"))
    assert not any(tensor.is_meta for tensor in (*part.parameters(), *part.buffers()))
    assert not any(parameter.requires_grad for parameter in part.parameters()) and not part.training
    if name != "tiny_medsiglip":
        whole = WHOLE[name][0].from_pretrained(path).state_dict()
        for key, tensor in part.state_dict().items():
            assert torch.equal(tensor, whole[key]), key


def test_the_skeleton_has_the_shapes_of_the_model_and_no_weights(folder):
    _, path = folder
    part = _load(path)
    empty = skeleton(part)
    assert {name: tensor.shape for name, tensor in empty.named_parameters()} == {
        name: tensor.shape for name, tensor in part.named_parameters()
    }
    assert all(tensor.is_meta for tensor in empty.parameters())


def test_another_family_is_refused(tiny_llava):
    family = FAMILIES.find("medsiglip")
    with pytest.raises(ConfigError, match="reads siglip, siglip_vision_model checkpoints, but .* is a 'llava' model"):
        refuse_other_architectures(family, ModelArgs("medsiglip", str(tiny_llava), part="vision"))
