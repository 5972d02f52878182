"""Refused combinations of a student, its teacher and their objectives, with the origin of the setting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.config.hardware import Hardware
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.errors import ConfigError

A100 = Hardware("cuda", "NVIDIA A100", (8, 0), 40 << 30, 1, 64 << 30, 8)
T4 = Hardware("cuda", "Tesla T4", (7, 5), 16 << 30, 1, 32 << 30, 4)
CHECKOUT = Path(__file__).resolve().parents[3]
BASE = f"""
_base_ = [{
    ", ".join(
        repr(f"{CHECKOUT}/config/_base_/{name}.py")
        for name in ("models/gemma3n_student", "datasets/echonet", "runtime/finetune")
    )
}]
training_args = dict(max_steps=3)
"""


@pytest.fixture
def run(write):
    def apply(lines: str = "", hardware: Hardware = A100):
        return apply_rules(read_config(write(BASE + lines)), hardware)[0]

    return apply


def refusal(run, lines: str, hardware: Hardware = A100) -> str:
    with pytest.raises(ConfigError) as excinfo:
        run(lines, hardware)
    return str(excinfo.value)


def test_the_published_settings(run):
    config = run()
    args, taught = config.model_args, config.distill_args
    assert (args.type, args.part, args.lora_r, args.lora_alpha, args.lora_target) == (
        "gemma3n-student",
        "vision",
        8,
        16,
        "vision",
    )
    assert (taught.teacher.model_name_or_path, taught.teacher.part, taught.cache) == (
        "google/medgemma-4b-pt",
        "vision",
        True,
    )
    weights = {name: options["weight"] for name, options in config.objectives.items()}
    assert weights == {"measures": dict(start=0.95, end=0.7), "feature_match": dict(start=0.05, end=0.3)}
    assert config.training_args["num_train_epochs"] == 3
    assert config.as_dict()["distill_args"]["teacher"]["part"] == "vision"


TEACHER = "distill_args = dict(_delete_=True, teacher=dict(type='medgemma', model_name_or_path='a/b'"


@pytest.mark.parametrize(
    "lines, sentence",
    [
        ("distill_args = None", "objectives.feature_match (FeatureMatch) needs a teacher: set distill_args"),
        ("distill_args = dict(_delete_=True, cache=True)", "distill_args needs teacher=dict(type=..."),
        (TEACHER + ", lora_r=4))", "a teacher does not train: remove distill_args.teacher.lora_r"),
        (
            TEACHER + ", heads=dict(box=dict(type='BoxHead'))))",
            "a teacher does not train: remove distill_args.teacher.heads",
        ),
        (TEACHER + "))", "needs a vision teacher: set distill_args.teacher.part='vision'"),
        (TEACHER.replace("medgemma", "medgema") + "))", "did you mean 'medgemma'"),
        (TEACHER + ", par='vision'))", "did you mean 'part'"),
        ("distill_args = dict(cash=True)", "did you mean 'cache'"),
        ("objectives = dict(feature_match=None)", "no objective uses the teacher: add one such as"),
        (
            "objectives = dict(words=dict(type='NextToken'))",
            "is for models that generate text, and part='vision' loads no language model",
        ),
        (
            "objectives = dict(words=dict(type='LogitMatch'))",
            "needs a teacher that generates text: remove distill_args.teacher.part",
        ),
        (
            "objectives = dict(measures=None)\nmodel_args = dict(heads=dict(_delete_=True))",
            "a model with part='vision' generates no text and needs a head",
        ),
        (
            "model_args = dict(part=None)",
            "a RegressionHead named 'measures' must be the only head of a model with part='vision'",
        ),
        (
            "objectives = dict(measures=None)\nmodel_args = dict(part=None, heads=dict(_delete_=True))",
            "is for a model with part='vision': set model_args.part='vision'",
        ),
        (
            "objectives = dict(pooled=dict(type='FeatureMatch', grid=1))",
            "objectives.feature_match and objectives.pooled are both FeatureMatch",
        ),
        ("model_args = dict(part='eyes')", "part"),
        (
            "model_args = dict(type='causal-lm', heads=dict(_delete_=True))",
            "model_args.part is only possible with type='medgemma', 'gemma3n-student' or 'medsiglip', and the type is",
        ),
        (
            "model_args = dict(load_in_4bit=True)",
            "has convolutions and no Linear layer, so only the language",
        ),
        (
            "objectives = dict(measures=None)\n"
            "model_args = dict(part=None, heads=dict(_delete_=True), train_vision=True)",
            "train_vision=True trains the vision tower of a model",
        ),
    ],
)
def test_impossible_settings_are_refused_with_their_line(run, lines: str, sentence: str):
    message = refusal(run, lines + "\n")
    assert sentence in message
    assert message.startswith("run.py") or "config/_base_/" in message, message


def test_fp16_is_refused_for_convolutions_that_overflow_it(run):
    message = refusal(run, "training_args = dict(fp16=True)\n", T4)
    assert "the convolutions of Gemma 3n's vision tower overflow in fp16" in message


def test_a_checkpoint_of_another_architecture_is_refused(run, tmp_path):
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "config.json").write_text(json.dumps({"model_type": "llava"}))
    message = refusal(run, f"model_args = dict(model_name_or_path={str(tmp_path / 'llava')!r})\n")
    assert "type='gemma3n-student' reads a Gemma 3n checkpoint" in message and "llava" in message.lower()


def test_a_medsiglip_teacher_has_part_vision_by_default(run):
    config = run("distill_args = dict(_delete_=True, teacher=dict(type='medsiglip', model_name_or_path='a/b'))\n")
    assert config.distill_args.teacher.part == "vision"
