"""A student written whole sees and measures what it did with its LoRA beside it."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import Gemma3nForConditionalGeneration

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.export import student
from mllm.export.card import Facts
from mllm.models.builder.builder import load_pretrained
from mllm.structures import Bundle

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
HEADS = dict(measures=dict(type="RegressionHead", measures=["EF", "EDV"], views=["ED", "ES"]))


def _args(path, **more) -> ModelArgs:
    return ModelArgs("gemma3n-student", str(path), part="vision", heads=HEADS, **more)


@pytest.fixture
def taught(tiny_student) -> Bundle:
    torch.manual_seed(0)
    bundle = load_pretrained(_args(tiny_student, lora_r=4, lora_target="vision"), CPU)
    bundle.model.head.normalize({"EF": [40, 60], "EDV": [90, 150]})
    for name, parameter in bundle.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    bundle.model.eval()
    return bundle


@torch.no_grad()
def test_it_measures_the_same_in_a_new_process(taught: Bundle, tiny_student, tmp_path):
    views = torch.rand(2, 2, 3, 96, 96)
    before = taught.model(views).heads["measures"]
    from dataclasses import asdict

    args = _args(tiny_student, lora_r=4, lora_target="vision")
    folder = student.write(taught, tmp_path / "student", settings=asdict(args), facts=Facts(base=str(tiny_student)))
    torch.testing.assert_close(taught.model(views).heads["measures"], before, rtol=0, atol=0)
    settings = json.loads((folder / "mllm.json").read_text())
    assert settings["part"] == "vision" and settings["heads"] == HEADS
    again = load_pretrained(_args(folder, lora_r=None), CPU).model.eval()
    torch.testing.assert_close(again(views).heads["measures"], before, rtol=1e-4, atol=1e-3)
    assert again.head.std.tolist() == taught.model.head.std.tolist()


def test_its_tensors_have_the_names_of_the_whole_model(taught: Bundle, tiny_student, tmp_path):
    folder = student.write(
        taught, tmp_path / "s", settings={"type": "gemma3n-student", "part": "vision"}, facts=Facts(base="a/b"), dtype=torch.bfloat16
    )
    whole = Gemma3nForConditionalGeneration.from_pretrained(tiny_student).state_dict()
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            assert tensor.shape == whole[name].shape and tensor.dtype is torch.bfloat16
    card = (folder / "README.md").read_text()
    assert "not for clinical use" in card and "--video" in card


def test_a_student_that_would_see_otherwise_is_not_written(taught: Bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(student, "TOLERANCE", 0.0)
    with pytest.raises(ConfigError, match="sees otherwise than before"):
        student.write(taught, tmp_path / "s", settings={"type": "gemma3n-student"}, facts=Facts(base="a/b"))
    assert not (tmp_path / "s").exists()
