"""A trained vision part goes to the disk whole, comes back with its head, and can teach without it."""

from dataclasses import asdict

import pytest
import torch

from mllm.config.config import read_config
from mllm.config.hardware import detect
from mllm.config.rules import apply_rules
from mllm.config.schema import ModelArgs
from mllm.export.adapter import write as write_adapter
from mllm.export.card import Facts
from mllm.export.student import write as write_student
from mllm.models.builder.builder import load_pretrained
from mllm.pipeline.prepare import fill_registries
from mllm.testing.tiny import write_tiny

HEADS = {"measures": {"type": "RegressionHead", "measures": ["EF"], "views": ["ED", "ES"], "hidden": 16}}
CONFIG = """
model_args = dict(type="medsiglip", model_name_or_path={folder!r}, part="vision", lora_r=None, train_vision=True,
                  heads={heads!r})
objectives = dict(measures=dict(type="MeasureLoss"))
data_args = dict(train=dict(type="PhantomEchoDataset", size=2))
training_args = dict(max_steps=1)
"""


@pytest.fixture(scope="module", params=["whole", "lora"])
def trained(request, tmp_path_factory):
    """A SigLIP with a head whose trained tensors were moved, and the folder that it was exported to."""
    folder = tmp_path_factory.mktemp("student")
    base = write_tiny("medsiglip", folder / "base", vision={"image_size": 28, "num_hidden_layers": 1})
    how = dict(train_vision=True, lora_r=None) if request.param == "whole" else dict(lora_r=4, lora_target="vision")
    args = ModelArgs("medsiglip", str(base), part="vision", heads=HEADS, **how)
    bundle = load_pretrained(args, detect())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    told = dict(settings=asdict(args), facts=Facts(base=str(base)))
    return bundle, write_student(bundle, folder / "written", **told), write_adapter(bundle, folder / "adapter", **told)


@torch.no_grad()
def seen(bundle):
    pixels = torch.rand(2, 2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    outputs = bundle.model.eval()(pixel_values=pixels)
    return outputs.hidden_BLD, outputs.heads.get("measures")


def test_it_comes_back_with_its_head(trained):
    bundle, folder, _ = trained
    again = load_pretrained(ModelArgs("medsiglip", str(folder), part="vision", lora_r=None, heads=HEADS), detect())
    for expected, found in zip(seen(bundle), seen(again), strict=True):
        torch.testing.assert_close(found, expected)


def test_it_teaches_without_its_head(trained, caplog):
    bundle, folder, _ = trained
    teacher = load_pretrained(ModelArgs("medsiglip", str(folder), part="vision", lora_r=None), detect())
    features, measures = seen(teacher)
    assert measures is None
    torch.testing.assert_close(features, seen(bundle)[0])
    assert "UNEXPECTED" not in caplog.text


def test_an_adapter_with_a_head_teaches_without_it(trained):
    bundle, _, adapter = trained
    if bundle.model.backbone is bundle.model.pretrained:
        pytest.skip("it was trained whole, and is named by its own folder")
    base = bundle.model.pretrained.name_or_path
    args = ModelArgs("medsiglip", str(base), part="vision", lora_r=None, adapter_path=str(adapter))
    features, measures = seen(load_pretrained(args, detect()))
    assert measures is None
    torch.testing.assert_close(features, seen(bundle)[0])


def test_a_config_may_name_what_was_trained(trained, tmp_path):
    fill_registries()
    (tmp_path / "run.py").write_text(CONFIG.format(folder=str(trained[1]), heads=HEADS))
    apply_rules(read_config(tmp_path / "run.py"), detect())
