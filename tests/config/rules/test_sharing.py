"""Sharing of image tokens is refused with a reason where it would change losses."""

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
    def apply(lines: str, model_type: str = "gemma3") -> RunConfig:
        folder = Path("ckpt/model")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        model = 'model_args = dict(model_name_or_path="ckpt/model")\n'
        text = f"{bases}data_args = dict(share_images=True)\n{model}{lines}\n"
        return apply_rules(read_config(write(text)), CPU)[0]

    return apply


def test_gemma_3_is_accepted(run):
    assert run("").data_args.share_images


@pytest.mark.parametrize(
    ("lines", "model_type", "sentence"),
    [
        ("privacy_args = dict(target_delta=1e-5, noise_multiplier=1.0)", "gemma3", "clips the gradient of each"),
        ("model_args['heads'] = dict(box=dict(type='BoxHead'))", "gemma3", "is not possible with heads"),
        ("model_args['type'] = 'image-text'", "qwen2_vl", "has not been tested with ckpt/model, a 'qwen2_vl' model"),
        ("model_args['attn_implementation'] = 'eager'", "gemma3", "attn_implementation='eager' is not possible"),
    ],
)
def test_others_are_refused(run, lines, model_type, sentence):
    with pytest.raises(ConfigError, match=rf"run\.py:\d+: .*{sentence}"):
        run(lines, model_type)
