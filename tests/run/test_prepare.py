"""With --tiny, tiny checkpoints replace those of the config."""

from __future__ import annotations

import pytest

from mllm.config.hardware import CHECKOUT
from mllm.dataset.builder import miniatures, open_datasets
from mllm.errors import ConfigError, UserError
from mllm.run.prepare import TINY_TOKENS, prepare_args
from mllm.run_files import MINIATURE, runs_of

CONFIGS = CHECKOUT / "config" / "training_configs"


@pytest.mark.parametrize("name", ["shikra_tinyllama", "perceptionGPT_refcoco"])
def test_a_tiny_llava_replaces_both_parts_of_shikra(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["model_args.pretrain_mm_mlp_adapter=absent.bin"]
    config, _ = prepare_args(str(CONFIGS / f"{name}.py"), overrides, tiny=True)
    args = config.model_args
    assert args.model_name_or_path == "ckpt/tiny-shikra" and (tmp_path / "ckpt/tiny-shikra/config.json").is_file()
    assert args.vision_tower is None and args.pretrain_mm_mlp_adapter is None
    assert args.pad_to_square is True and args.fuse_vision_layers is (name == "perceptionGPT_refcoco")
    assert (tmp_path / config.data_args.train["data_path"]).is_file(), "a generated miniature"


def test_tiny_replaces_no_mistyped_adapter(tmp_path, monkeypatch):
    """The run would try the config with another adapter and end with 0."""
    monkeypatch.chdir(tmp_path)
    config = str(CONFIGS / "medgemma_cpu_demo.py")
    with pytest.raises(ConfigError, match="adapter_path 'exp/mistyped/latest/adapter' does not exist: correct it, or"):
        prepare_args(config, ["model_args.adapter_path=exp/mistyped/latest/adapter"], tiny=True)
    for name in ("owner/adapter-of-the-hub", str(tmp_path)):
        args, _ = prepare_args(config, [f"model_args.adapter_path={name}"], tiny=True)
        assert "tiny" in str(args.model_args.adapter_path)


def test_tiny_replaces_absent_files_of_shipped_bases_only(tmp_path, monkeypatch):
    """A mistyped path in a user's config would otherwise train on a miniature, and the run would end with 0."""
    monkeypatch.chdir(tmp_path)
    bases = [str(CHECKOUT / "config/_base_" / name) for name in ("models/medgemma.py", "runtime/finetune.py")]
    (tmp_path / "own.py").write_text(
        f"_base_ = {[*bases, str(CHECKOUT / 'config/_base_/datasets/refcoco_rec.py')]}\n"
        'data_args = dict(validation=dict(data_path="mistyped.jsonl"))\n'
    )
    config, _ = prepare_args("own.py", tiny=True)
    assert miniatures(config.data_args, runs_of("own") / MINIATURE) == ["train", "test"]
    assert config.data_args.validation["data_path"] == "mistyped.jsonl"
    with pytest.raises(UserError, match=r"mistyped.jsonl.* does not exist"):
        open_datasets(config.data_args)
    override = ["data_args.validation.data_path=also_mistyped.jsonl", "data_args.test=None"]
    config, _ = prepare_args("own.py", override, tiny=True)
    assert config.data_args.validation["data_path"] == "also_mistyped.jsonl"
    assert miniatures(config.data_args, runs_of("own") / MINIATURE) == ["train"]


def test_tiny_answers_are_short_unless_the_command_line_sets_their_length(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    path, key = str(CONFIGS / "medgemma_vqa_rad.py"), "data_args.gen_kwargs.max_new_tokens"
    with caplog.at_level("INFO", logger="mllm"):
        config, _ = prepare_args(path, [], tiny=True)
    assert config.data_args.gen_kwargs["max_new_tokens"] == TINY_TOKENS
    for tokens in (2, 100):
        config, _ = prepare_args(path, [f"{key}={tokens}"], tiny=True)
        assert config.data_args.gen_kwargs["max_new_tokens"] == tokens
    assert caplog.text.count(f"answers of at most {TINY_TOKENS} tokens instead of ") == 1
