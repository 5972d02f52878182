"""Rules for the parts of a model that train, and for models that start from new weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.config.hardware import Hardware
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.errors import ConfigError

A10 = Hardware("cuda", "NVIDIA A10G", (8, 6), 15 << 30, 1, 32 << 30, 4)
QUANTIZED = "and quantized weights cannot train (load_in_4bit=True (run.py:2)): set load_in_4bit=False, or train a LoRA"


@pytest.fixture
def apply(write, bases):
    """A function that applies the rules to a config with these `model_args`."""

    def apply_to(values: str, more: str = ""):
        return apply_rules(read_config(write(f"{bases}model_args = dict({values})\n{more}")), A10)

    return apply_to


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ("trainable='full', load_in_4bit=True", f"trainable trains language and vision in full, {QUANTIZED}"),
        (
            "trainable=dict(language=dict(last_layers=2)), load_in_4bit=True",
            f"trainable trains language in full, {QUANTIZED}",
        ),
        (
            "trainable=dict(vision='full'), train_vision=True, part='vision', heads=dict(measures=dict("
            "type='RegressionHead', measures=['EF'], views=['ED', 'ES'])))\nobjectives = dict(next_token=None, "
            "measures=dict(type='MeasureLoss')",
            "train_vision=True is for trainable='lora', and trainable (run.py:2) says what trains: remove train_vision",
        ),
        (
            "trainable=dict(language='lora'), lora_target='vision'",
            "lora_target='vision' contradicts trainable (run.py:2), which puts a LoRA into lora_target='language': "
            "remove lora_target",
        ),
        (
            "trainable='full', lora_target='.*q_proj'",
            "lora_target='.*q_proj' has no effect, because trainable (run.py:2) trains no LoRA: remove lora_target, or "
            "name a tower with 'lora'",
        ),
        (
            "trainable=dict(language='full'), part='vision', heads=dict(measures=dict(type='RegressionHead', "
            "measures=['EF'], views=['ED', 'ES'])))\nobjectives = dict(next_token=None, "
            "measures=dict(type='MeasureLoss')",
            "trainable names the part 'language', which a model with part='vision' does not have: remove it",
        ),
        ("init_seed=3", "init_seed=3 has no effect without from_scratch=True: set that too, or remove it"),
        (
            "from_scratch=True",
            "from_scratch=True starts from random weights, and trainable='lora' would leave some of them frozen: set "
            "trainable='full'",
        ),
        (
            "from_scratch=True, trainable='full', adapter_path='a'",
            "from_scratch=True ignores the weights of the checkpoint, and adapter_path (run.py:2) needs them: remove "
            "one of them",
        ),
        (
            "type='shikra', model_name_or_path='lmsys/vicuna', trainable='full', freeze_backbone=True",
            "freeze_backbone=True is for trainable='lora', and trainable (run.py:2) says what trains: remove "
            "freeze_backbone",
        ),
        (
            "type='shikra', model_name_or_path='lmsys/vicuna', trainable=dict(language='full'), vision_tower='a/clip'",
            "trainable would freeze a new projector with random weights: add 'projector': 'full', or set "
            "pretrain_mm_mlp_adapter to a trained one",
        ),
    ],
)
def test_what_cannot_train_is_refused(apply, values: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply(values)
    assert str(caught.value) == f"run.py:2: {problem}"


def test_weights_that_are_quantized_on_disk_cannot_train_in_full(apply) -> None:
    folder = Path("ckpt/four")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "quantization_config": {}}))
    with pytest.raises(ConfigError, match=r"cannot train \(ckpt/four\): use the full-precision checkpoint"):
        apply("trainable='full', model_name_or_path='ckpt/four'")
    apply("trainable=dict(language='lora', projector='full'), model_name_or_path='ckpt/four'")


def test_parts_that_stay_in_full_precision_train_beside_quantized_weights(apply) -> None:
    for values in (
        "load_in_4bit=True, trainable=dict(language='lora', projector='full')",
        "load_in_8bit=True, trainable=dict(language='lora', vision='full', projector='full')",
        "type='gemma3n-student', load_in_4bit=True, trainable=dict(vision='full')",
    ):
        apply(values)


def test_norms_and_embeddings_cannot_be_private(apply) -> None:
    private = "privacy_args = dict(target_delta=1e-6, target_epsilon=3)\n"
    with pytest.raises(ConfigError, match="trains norms and embeddings of the part 'language', but with privacy_args"):
        apply("trainable='full'", private)
    apply("trainable=dict(language='lora', projector='full')", private)
