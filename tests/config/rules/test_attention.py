"""Implementations of attention that would compute another mask are refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.config.hardware import Hardware
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.errors import ConfigError

CPU = Hardware("cpu", "x86_64", None, 0, 0, 8 << 30, 2)


@pytest.fixture
def run(write, bases):
    def apply(attention: str, model_type: str, layout: str = "") -> str | None:
        Path("ckpt/model").mkdir(parents=True, exist_ok=True)
        Path("ckpt/model/config.json").write_text(json.dumps({"model_type": model_type}))
        kind = "medgemma" if model_type == "gemma3" else "image-text"
        model = f'dict(type="{kind}", model_name_or_path="ckpt/model", attn_implementation="{attention}")'
        text = f"{bases}data_args = dict({layout})\nmodel_args = {model}\n"
        return apply_rules(read_config(write(text)), CPU)[0].model_args.attn_implementation

    return apply


@pytest.mark.parametrize(
    ("attention", "model_type", "sentence"),
    [
        ("flash_attention_2", "gemma3", "the image tokens of a Gemma 3 checkpoint would not attend to later ones"),
        ("kernels-community/flash_attention_3", "paligemma", "would not attend to later ones"),
        ("flex_attention", "gemma3", "is the attention of rows with several samples: set data_args.packing or"),
    ],
)
def test_others_are_refused(run, attention, model_type, sentence):
    with pytest.raises(ConfigError, match=rf"run\.py:\d+: attn_implementation='{attention}' .*{sentence}"):
        run(attention, model_type)


def test_flash_attention_of_causal_models_and_flex_attention_of_rows_are_accepted(run):
    assert run("flash_attention_2", "llava") == "flash_attention_2"
    assert run("flex_attention", "gemma3", "share_images=True") == "flex_attention"
    assert run("flex_attention", "gemma3", "packing=True") == "flex_attention"
