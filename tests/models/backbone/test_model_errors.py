"""Tests of the messages for errors in the code of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mllm.errors import ConfigError
from mllm.models.backbone.model_errors import explained_model_errors


@pytest.fixture
def model() -> LlamaForCausalLM:
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    return LlamaForCausalLM(LlamaConfig(vocab_size=10, **sizes))


@pytest.mark.parametrize("generates", [False, True])
def test_an_error_in_the_code_of_a_model_is_one_sentence(model: LlamaForCausalLM, generates: bool) -> None:
    sentence = r"^LlamaForCausalLM of transformers [\d.]+ fails at noon \(\w+: .+\): this architecture cannot work "
    with pytest.raises(ConfigError, match=sentence), explained_model_errors(model, "at noon", "cannot work"):
        if generates:
            model.generation_config.cache_implementation = "no such cache"  # generation fails outside of the model
            model.generate(torch.ones(1, 2, dtype=torch.long), max_new_tokens=1)
        else:
            model(input_ids=torch.tensor([[99]]))  # no row of the embedding


@pytest.mark.parametrize("error", [ValueError("ours"), ConfigError("of a user"), MemoryError("full")])
def test_other_errors_are_passed_on(model: LlamaForCausalLM, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), explained_model_errors(model, "at noon", "cannot work"):
        raise error
