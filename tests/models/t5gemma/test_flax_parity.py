"""T5Gemma in Flax and in transformers: equal logits, greedy answers and sizes, also after a training here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flax_reference import INPUTS, NEW_TOKENS, PROMPTS, TARGETS, WINDOW, Reference
from safetensors.torch import load_file
from transformers import AutoTokenizer, T5GemmaConfig, T5GemmaForConditionalGeneration

from mllm.models.t5gemma.config import build_config
from mllm.models.t5gemma.from_flax import convert_from_flax
from mllm.models.t5gemma.layout import arrays
from mllm.models.t5gemma.orbax import open_checkpoint
from mllm.models.t5gemma.sizes import PUBLISHED_ROWS, SIZES, Dimensions
from mllm.models.t5gemma.to_flax import convert_to_flax
from mllm.pipeline.finetune import main as finetune
from mllm.pipeline.merge import main as merge

for package in ("gemma", "kagglehub", "orbax"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"could not import '{package}', which needs Python 3.11", allow_module_level=True)

CONFIG = """
model_args = dict(type="seq2seq", model_name_or_path="{model}", lora_r=4)
data_args = dict(train=dict(type="TranslationDataset", data_path="pairs.tsv"))
training_args = dict(max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, save_strategy="no",
                     dataloader_num_workers=0, report_to=[])
"""


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    process = Reference()
    yield process
    process.close()


@pytest.fixture(scope="module")
def flax(reference, tmp_path_factory) -> Path:
    """Return a checkpoint that Flax wrote."""
    folder = tmp_path_factory.mktemp("reference") / "flax"
    reference.ask("make", folder=str(folder))
    return folder


@pytest.fixture(scope="module")
def converted(flax, pieces) -> Path:
    """Return the converted checkpoint."""
    return convert_from_flax(flax, flax.parent / "converted", tokenizer=str(pieces), instruction_tuned=True)


@torch.inference_mode()
def assert_same_answers(folder: Path, expected: dict[str, Any]) -> None:
    """Compare logits, tokens of prompts, and greedy answers of a folder of transformers with those of Flax."""
    model, tokenizer = T5GemmaForConditionalGeneration.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    sources = torch.tensor(INPUTS)
    batch = dict(input_ids=sources, attention_mask=(sources != 0).long(), decoder_input_ids=torch.tensor(TARGETS))
    logits = model(**batch).logits
    assert logits.std() > 0.1
    np.testing.assert_allclose(logits.numpy(), expected["logits"], rtol=0, atol=1e-5)
    assert [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS] == expected["ids"]
    prompts = tokenizer(PROMPTS, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    answers = model.generate(**prompts, max_new_tokens=NEW_TOKENS, do_sample=False)[:, 1:]
    tokens = np.zeros((len(PROMPTS), NEW_TOKENS), dtype=int)
    tokens[:, : answers.shape[1]] = answers
    assert tokens.tolist() == expected["tokens"]

    config: Any = T5GemmaConfig.from_pretrained(folder)
    # transformers attends to tokens at the distance of the window in the encoder, but not in the decoder; Flax never.
    config.encoder.sliding_window, config.decoder.sliding_window = WINDOW - 1, WINDOW
    limited = T5GemmaForConditionalGeneration.from_pretrained(folder, config=config)(**batch).logits
    np.testing.assert_allclose(limited.numpy(), expected["logits of the window"], rtol=0, atol=1e-5)
    assert (limited - logits).abs().max() > 1e-3


def test_logits_and_greedy_answers_are_those_of_flax(reference, flax, converted, pieces):
    assert_same_answers(converted, reference.ask("run", folder=str(flax), pieces=str(pieces)))


def test_a_round_trip_from_flax_is_equal_in_all_bits(flax, converted, tmp_path):
    back = convert_to_flax(converted, tmp_path / "back")
    with open_checkpoint(flax) as before, open_checkpoint(back) as after:
        assert before.arrays == after.arrays
        for name in before.arrays:
            assert torch.equal(before.read(name).view(torch.int32), after.read(name).view(torch.int32)), name


def test_a_model_that_was_trained_here_goes_on_in_flax(reference, converted, pieces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = [("The heart.", "Le coeur."), ("The liver.", "Le foie.")]
    Path("pairs.tsv").write_text("".join(f"{n}\t{source}\t{target}\n" for n, (source, target) in enumerate(pairs)))
    Path("run.py").write_text(CONFIG.format(model=converted))
    assert finetune(["run.py"]) == 0
    merged = tmp_path / "merged"
    assert merge(["--adapter", "exp/run/latest/adapter", "--out", str(merged)]) == 0
    trained, before = load_file(merged / "model.safetensors"), load_file(converted / "model.safetensors")
    changed = [name for name, value in trained.items() if not torch.equal(value, before[name])]
    assert len(changed) == 7 * 4 + 11 * 2, "all layers of attention and all feed-forward layers"
    flax = convert_to_flax(merged, tmp_path / "flax", tokenizer=str(converted))
    assert_same_answers(merged, reference.ask("run", folder=str(flax), pieces=str(pieces)))


def test_published_sizes_are_those_of_flax(reference):
    found = reference.ask("presets")
    assert found.keys() == SIZES.keys()
    for size, preset in found.items():
        dimensions = Dimensions(*SIZES[size], PUBLISHED_ROWS)
        config = build_config(dimensions, "bfloat16", [1]).to_dict()
        for side, stack in (("encoder", dimensions.encoder), ("decoder", dimensions.decoder)):
            flax, ours = preset[side], config[side]
            names = ("num_layers", "embed_dim", "hidden_dim", "num_heads", "head_dim", "num_kv_heads")
            assert [flax[name] for name in (*names, "transpose_gating_einsum")] == list(vars(stack).values())
            assert flax["num_embed"] == PUBLISHED_ROWS
            assert flax["sliding_window_size"] == ours["sliding_window"]
            assert flax["attn_logits_soft_cap"] == ours["attn_logit_softcapping"]
            assert flax["final_logit_softcap"] == ours["final_logit_softcapping"]
            for key in ("local_base_frequency", "global_base_frequency"):
                assert flax[key] == ours["rope_parameters"]["rope_theta"]
            kinds = {"AttentionType.LOCAL_SLIDING": "sliding_attention", "AttentionType.GLOBAL": "full_attention"}
            assert len(flax["attention_types"]) == len(ours["layer_types"]) == stack.layers
            assert [kinds.get(kind, kind) for kind in flax["attention_types"]] == ours["layer_types"]
        first = {array.name: list(array.shape) for array in arrays(dimensions) if "/layer_" not in array.name}
        first |= {array.name: list(array.shape) for array in arrays(dimensions) if "/layer_0/" in array.name}
        assert first == preset["arrays"]
