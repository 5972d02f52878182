"""With --tiny, tiny checkpoints stand in for all that a config names."""

from __future__ import annotations

import pytest

from mllm.config.hardware import CHECKOUT
from mllm.run.prepare import prepare_args

CONFIGS = CHECKOUT / "config" / "training_configs"


@pytest.mark.parametrize("name", ["shikra_tinyllama", "perceptionGPT_refcoco"])
def test_a_tiny_llava_stands_in_for_both_of_shikras_parts(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["model_args.pretrain_mm_mlp_adapter=absent.bin"]
    config, _ = prepare_args(str(CONFIGS / f"{name}.py"), overrides, tiny=True)
    args = config.model_args
    assert args.model_name_or_path == "ckpt/tiny-shikra" and (tmp_path / "ckpt/tiny-shikra/config.json").is_file()
    assert args.vision_tower is None and args.pretrain_mm_mlp_adapter is None
    assert args.pad_to_square is True and args.fuse_vision_layers is (name == "perceptionGPT_refcoco")
    assert (tmp_path / config.data_args.train["data_path"]).is_file(), "a generated miniature"
