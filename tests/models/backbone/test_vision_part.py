"""The part that sees, against the same part of the whole model."""

import pytest
import torch
from transformers import (
    AutoConfig,
    Gemma3ForConditionalGeneration,
    Gemma3nForConditionalGeneration,
    SiglipVisionModel,
)

from mllm.errors import ConfigError
from mllm.models.backbone.vision_part import SIGHTS, load_vision, skeleton

WHOLE = {
    "tiny_student": (Gemma3nForConditionalGeneration, 96),
    "tiny_medgemma": (Gemma3ForConditionalGeneration, 896),
    "tiny_medsiglip": (SiglipVisionModel, 112),
}


@pytest.fixture(params=WHOLE)
def folder(request):
    return request.param, request.getfixturevalue(request.param)


def _load(path):
    return load_vision(str(path), AutoConfig.from_pretrained(path), precision="fp32", device="cpu")


@torch.no_grad()
def test_it_sees_bit_by_bit_what_the_whole_model_sees(folder):
    name, path = folder
    kind, side = WHOLE[name]
    whole, part = kind.from_pretrained(path).eval(), _load(path)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    seen = part.get_image_features(images).pooler_output
    if kind is SiglipVisionModel:
        assert torch.equal(seen, whole(images).last_hidden_state)
    else:
        assert torch.equal(seen, whole.get_image_features(images).pooler_output)


def test_nothing_but_towers_and_projector_is_in_memory(folder):
    name, path = folder
    part = _load(path)
    towers = SIGHTS[AutoConfig.from_pretrained(path).model_type].towers.values()
    names = [name for name, _ in (*part.named_parameters(), *part.named_buffers())]
    assert names and all(name.startswith(tuple(towers)) for name in names)
    assert not any(word in name for name in names for word in ("language", "lm_head", "audio", "text"))
    assert not any(tensor.is_meta for tensor in (*part.parameters(), *part.buffers()))
    assert not any(parameter.requires_grad for parameter in part.parameters()) and not part.training
    if name != "tiny_medsiglip":
        whole = WHOLE[name][0].from_pretrained(path).state_dict()
        for key, tensor in part.state_dict().items():
            assert torch.equal(tensor, whole[key]), key


def test_its_skeleton_has_its_shapes_and_no_weight(folder):
    _, path = folder
    part = _load(path)
    empty = skeleton(part)
    assert {name: tensor.shape for name, tensor in empty.named_parameters()} == {
        name: tensor.shape for name, tensor in part.named_parameters()
    }
    assert all(tensor.is_meta for tensor in empty.parameters())


def test_another_family_is_refused(tiny_llava):
    with pytest.raises(ConfigError, match="part='vision' loads the vision part of gemma3n, gemma3, siglip"):
        _load(tiny_llava)
