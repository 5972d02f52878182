"""Packing is refused with a reason if it would change losses, before weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.config.hardware import Hardware
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError

CPU = Hardware("cpu", "x86_64", None, 0, 0, 8 << 30, 2)


@pytest.fixture
def run(write, bases):
    def apply(lines: str, model_type: str = "gemma3n_text") -> RunConfig:
        folder = Path("ckpt/model")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        text = bases + "data_args = dict(packing=True)\n" + lines + "\n"
        return apply_rules(read_config(write(text)), CPU)[0]

    return apply


TEXT = 'model_args = dict(type="{}", model_name_or_path="ckpt/model"{})'


@pytest.mark.parametrize("model_type", ["gemma3n", "gemma3n_text", "gemma3_text", "llama", "vaultgemma"])
def test_families_with_exact_packing_are_accepted(run, model_type: str):
    assert run(TEXT.format("causal-lm", ""), model_type).data_args.packing


def test_images_of_gemma_3_are_packed(run):
    assert run("model_args = dict(model_name_or_path='ckpt/model')", "gemma3").data_args.packing


def test_an_absent_checkpoint_is_checked_by_the_preflight(run):
    assert run('model_args = dict(type="causal-lm", model_name_or_path="google/gemma-3n-E4B-it")').data_args.packing


@pytest.mark.parametrize(
    ("lines", "model_type", "sentence"),
    [
        (TEXT.format("seq2seq", ""), "t5gemma", r"run\.py:2: .*its decoder attends to the sources of all samples"),
        (
            "model_args = dict(part='vision', model_name_or_path='ckpt/model', "
            "heads=dict(measures=dict(type='RegressionHead', measures=['EF'], views=['ED'])))\n"
            "objectives = dict(measures=dict(type='MeasureLoss'))",
            "gemma3",
            r"run\.py:2: packing=True cannot be exact with type='medgemma', because a vision tower reads no text",
        ),
        (
            TEXT.format("gemma3n-student", ""),
            "gemma3n",
            r"has not been tested with type='gemma3n-student' and ckpt/model, a 'gemma3n' model \(tested: gemma3",
        ),
        (
            "model_args = dict(model_name_or_path='ckpt/model', heads=dict(box=dict(type='BoxHead')))",
            "gemma3",
            r"packing=True is not possible with heads",
        ),
        (
            TEXT.format("causal-lm", ""),
            "bloom",
            "has not been tested with type='causal-lm' and ckpt/model, a 'bloom'",
        ),
        (
            TEXT.format("causal-lm", ', attn_implementation="flash_attention_2"'),
            "llama",
            r"run\.py:3: attn_implementation='flash_attention_2' is not possible with packing=True",
        ),
    ],
)
def test_inexact_packing_is_refused(run, lines: str, model_type: str, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        run(lines, model_type)
