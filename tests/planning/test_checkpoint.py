"""Tests of checkpoints without weights: their sizes are those of the published checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from transformers import AutoConfig

from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.planning.checkpoint import find_published, local_folder, published_checkpoints, without_weights
from mllm.registry import MODELS  # noqa: F401  # registers the families

RECORDS = published_checkpoints()


@pytest.mark.parametrize("record", RECORDS, ids=[record.names[0] for record in RECORDS])
def test_published_checkpoints_have_their_published_number_of_parameters(record, tmp_path):
    args = ModelArgs("medgemma", record.names[0])
    folder = without_weights(args, tmp_path).model_name_or_path
    config = AutoConfig.from_pretrained(folder)
    kind = vars(transformers).get(config.architectures[0]) or getattr(transformers, config.architectures[0])
    with torch.device("meta"):
        model = kind(config)
    model.tie_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == record.parameters - record.not_built


def test_a_checkpoint_that_is_not_here_is_refused():
    with pytest.raises(ConfigError, match="config.json of 'owner/medgemma-5b-it' is not on this machine.*medgemma-4b"):
        find_published("owner/medgemma-5b-it")


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="contains no config.json"):
        local_folder(str(tmp_path))


def test_a_config_alone_is_enough(tmp_path, tiny_medgemma):
    """The processor of the tiny checkpoint replaces an absent one, and its token ids those of the config."""
    config = json.loads((tiny_medgemma / "config.json").read_text())
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.json").write_text(json.dumps({**config, "image_token_index": 99_999}))
    args = without_weights(ModelArgs("medgemma", str(tmp_path / "alone")), tmp_path / "plan")
    written = json.loads((tmp_path / "plan" / "base" / "config.json").read_text())
    assert args.model_name_or_path == str(tmp_path / "plan" / "base")
    assert written["image_token_index"] == config["image_token_index"]
    assert (tmp_path / "plan" / "base" / "tokenizer_config.json").is_file()


def test_weights_are_not_read(tmp_path, tiny_medgemma):
    folder = without_weights(ModelArgs("medgemma", str(tiny_medgemma)), tmp_path).model_name_or_path
    assert (tmp_path / "base" / "model.safetensors").stat().st_size == 0
    assert (tmp_path / "base" / "tokenizer.json").resolve() == (tiny_medgemma / "tokenizer.json").resolve()
    assert folder == str(tmp_path / "base")
