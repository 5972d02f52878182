"""Tests of the exporter of vision models: round trip with the head, use as a teacher, facts, and refusals."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors import safe_open
from transformers import Gemma3nForConditionalGeneration

from mllm.config.hardware import Hardware, detect
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.export import comparison, student
from mllm.export.adapter import write as write_adapter
from mllm.export.facts import Facts
from mllm.export.folder import update_figures
from mllm.export.student import write as write_student
from mllm.models.builder.builder import load_pretrained
from mllm.protocols import Bundle
from mllm.tiny.checkpoints import write_tiny

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
    """A SigLIP with a head and changed trained tensors, and the folders of its exports."""
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
    facts = Facts(str(base), asdict(args))
    return (
        bundle,
        write_student(bundle, folder / "written", facts=facts),
        write_adapter(bundle, folder / "adapter", facts=facts),
    )


@torch.no_grad()
def outputs_of(bundle):
    pixels = torch.rand(2, 2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    outputs = bundle.model.eval()(pixel_values=pixels)
    return outputs.hidden_BLD, outputs.heads.get("measures")


def test_the_head_survives_a_round_trip(trained):
    bundle, folder, _ = trained
    again = load_pretrained(ModelArgs("medsiglip", str(folder), part="vision", lora_r=None, heads=HEADS), detect())
    for expected, actual in zip(outputs_of(bundle), outputs_of(again), strict=True):
        torch.testing.assert_close(actual, expected)


def test_a_student_is_a_teacher_without_its_head(trained, caplog):
    bundle, folder, _ = trained
    teacher = load_pretrained(ModelArgs("medsiglip", str(folder), part="vision", lora_r=None), detect())
    features, measures = outputs_of(teacher)
    assert measures is None
    torch.testing.assert_close(features, outputs_of(bundle)[0])
    assert "UNEXPECTED" not in caplog.text


def test_an_adapter_is_a_teacher_without_its_head(trained):
    bundle, _, adapter = trained
    if bundle.model.backbone is bundle.model.pretrained:
        pytest.skip("it was trained whole, and is named by its own folder")
    base = bundle.model.pretrained.name_or_path
    args = ModelArgs("medsiglip", str(base), part="vision", lora_r=None, adapter_path=str(adapter))
    features, measures = outputs_of(load_pretrained(args, detect()))
    assert measures is None
    torch.testing.assert_close(features, outputs_of(bundle)[0])


def test_a_config_can_name_a_student(trained, tmp_path):
    (tmp_path / "run.py").write_text(CONFIG.format(folder=str(trained[1]), heads=HEADS))
    apply_rules(read_config(tmp_path / "run.py"), detect())


CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
BOTH = dict(measures=dict(type="RegressionHead", measures=["EF", "EDV"], views=["ED", "ES"]))


def _args(path, **more) -> ModelArgs:
    return ModelArgs("gemma3n-student", str(path), part="vision", heads=BOTH, **more)


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
def test_a_loaded_student_computes_the_same_measures(taught: Bundle, tiny_student, tmp_path):
    views = torch.rand(2, 2, 3, 96, 96)
    before = taught.model(views).heads["measures"]
    args = _args(tiny_student, lora_r=4, lora_target="vision")
    folder = student.write(taught, tmp_path / "student", facts=Facts(str(tiny_student), asdict(args)))
    torch.testing.assert_close(taught.model(views).heads["measures"], before, rtol=0, atol=0)
    settings = json.loads((folder / "mllm.json").read_text())
    assert settings["part"] == "vision" and settings["heads"] == BOTH
    again = load_pretrained(_args(folder, lora_r=None), CPU).model.eval()
    torch.testing.assert_close(again(views).heads["measures"], before, rtol=1e-4, atol=1e-3)
    assert again.head.std.tolist() == taught.model.head.std.tolist()


def test_its_tensors_have_the_names_of_the_full_model(taught: Bundle, tiny_student, tmp_path):
    folder = student.write(
        taught,
        tmp_path / "s",
        facts=Facts("a/b", {"type": "gemma3n-student", "part": "vision"}),
        dtype=torch.bfloat16,
    )
    whole = Gemma3nForConditionalGeneration.from_pretrained(tiny_student).state_dict()
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            assert tensor.shape == whole[name].shape and tensor.dtype is torch.bfloat16
    card = (folder / "README.md").read_text()
    assert "not for clinical use" in card and "--video" in card and "added tokens" not in card


def test_a_student_with_other_features_is_refused(taught: Bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "FEATURE_TOLERANCE", 0.0)
    with pytest.raises(ConfigError, match="the features of the merged vision model differ"):
        student.write(taught, tmp_path / "s", facts=Facts("a/b", {"type": "gemma3n-student"}))
    assert not (tmp_path / "s").exists()


def test_the_student_has_a_report_and_figures(taught: Bundle, tiny_student, tmp_path):
    args = _args(tiny_student, lora_r=4, lora_target="vision")
    folder = student.write(taught, tmp_path / "s", facts=Facts(str(tiny_student), asdict(args)), dtype=torch.bfloat16)
    report = json.loads((folder / "export_report.json").read_text())
    assert (report["parity"], report["dtype"]) == ("checked", "bfloat16")
    assert 0 < report["max_relative_difference"] < report["allowed_difference"]
    update_figures(folder, {"measures": {"EF/mae": 4.5}})
    assert "| measures/EF/mae | 4.5 |" in (folder / "README.md").read_text()
