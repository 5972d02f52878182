"""Hidden states must not depend on later tokens of the answer: prefix-LMs get their mask, others are refused."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
)

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.dataset.loading.collator import LogicalCollator
from mllm.engine.learner import Learner
from mllm.engine.preflight import preflight
from mllm.errors import ConfigError
from mllm.models.builder.builder import load_pretrained
from mllm.models.generation.generate import generate, stop_ids
from mllm.objectives.text import NextToken
from mllm.structures import IGNORE, Sample, Turn
from mllm.tiny.checkpoints import write_tiny

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
PICTURE = Image.new("RGB", (28, 28), (200, 20, 90))
ANSWERS = ("two large lesions", "no")


def samples(images):
    return [Sample([Turn("user", "What is seen?"), Turn("assistant", text)], images, source="F") for text in ANSWERS]


def check(bundle, images=()):
    """Run the checks before the first update on two samples."""
    collate = LogicalCollator(bundle.encoder.pad, samples_per_piece=2)
    batch = collate([bundle.encoder.encode(sample) for sample in samples(list(images))])
    learner = Learner(bundle.model, {"next_token": NextToken()})
    preflight(learner, batch, SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext))


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory):
    """A tiny PaliGemma with an image of 4 tokens."""
    folder = write_tiny("paligemma2", tmp_path_factory.mktemp("paligemma") / "model", vision={"image_size": 28})
    args = ModelArgs(type="image-text", model_name_or_path=str(folder), lora_r=2, lora_target="language", max_length=64)
    return load_pretrained(args, CPU)


def test_a_prefix_model_has_bidirectional_attention_in_the_prompt_and_causal_attention_in_the_answer(paligemma):
    encoded = paligemma.encoder.encode(samples([PICTURE])[0])
    prompt = paligemma.encoder.prompt(samples([PICTURE])[0])
    supervised = encoded.targets["labels"] != IGNORE
    assert encoded.student["token_type_ids"].tolist() == supervised.long().tolist()
    assert not prompt.student["token_type_ids"].any()
    assert torch.equal(encoded.student["input_ids"][: len(prompt)], prompt.student["input_ids"])
    assert supervised[len(prompt) :].all()
    assert "labels" not in encoded.student
    check(paligemma, [PICTURE])
    # Without these types the whole text is the prefix.
    paligemma.encoder.types_of_suffix = False
    try:
        with pytest.raises(ConfigError, match="PaliGemma.* attends to later tokens, so it would see the answer"):
            check(paligemma, [PICTURE])
    finally:
        paligemma.encoder.types_of_suffix = True


@torch.no_grad()
def test_a_prefix_model_generates_as_it_trains(paligemma):
    """Reference: full forward passes over the prompt and the generated tokens, with the token types of training."""
    sample = samples([PICTURE])[0]
    student = dict(paligemma.encoder.pad([paligemma.encoder.prompt(sample)]).student)
    model, tokens = paligemma.model.pretrained.eval(), []
    for _ in range(5):
        token = model(**student).logits[0, -1].argmax().view(1, 1)
        if int(token) in stop_ids(paligemma):
            break
        tokens.append(int(token))
        student["input_ids"] = torch.cat([student["input_ids"], token], dim=1)
        for name in ("attention_mask", "token_type_ids"):
            student[name] = torch.cat([student[name], torch.ones_like(token)], dim=1)
    answer = generate(paligemma, [sample], max_new_tokens=5, progress=False)[0]
    assert answer.text == paligemma.encoder.read_answer(torch.tensor(tokens, dtype=torch.long)).text
    assert answer.tokens == min(len(tokens) + 1, 5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", dict(num_attention_heads=2, num_hidden_layers=2, initializer_range=0.01)),
        ("electra", dict(num_attention_heads=2, num_hidden_layers=2, embedding_size=32)),
        ("xlm", dict(emb_dim=32, n_layers=2, n_heads=2)),
        (
            "gemma3_text",
            dict(num_key_value_heads=1, head_dim=16, num_hidden_layers=2, use_bidirectional_attention=True),
        ),
        ("gemma3_text", dict(num_key_value_heads=1, head_dim=16, num_hidden_layers=2)),
        ("mixtral", dict(num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=2, num_local_experts=4)),
    ],
)
def test_new_weights_that_attend_a_little_to_later_tokens(tiny_medgemma, tmp_path, kind, options):
    tokenizer = AutoTokenizer.from_pretrained(tiny_medgemma)
    torch.manual_seed(0)
    sizes = {} if kind == "xlm" else dict(hidden_size=32, intermediate_size=64)
    config = CONFIG_MAPPING[kind](vocab_size=len(tokenizer), **sizes, **options)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    bundle = load_pretrained(
        ModelArgs(type="causal-lm", model_name_or_path=str(tmp_path / "model"), lora_r=2, max_length=64), CPU
    )
    if kind == "mixtral" or (kind == "gemma3_text" and "use_bidirectional_attention" not in options):
        check(bundle)
    else:
        with pytest.raises(ConfigError, match="attends to later tokens"):
            check(bundle)


def test_a_model_that_reads_the_whole_text_is_refused(tiny_medgemma, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_medgemma)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    args = ModelArgs(type="causal-lm", model_name_or_path=str(tmp_path / "bert"), lora_r=2, max_length=64)
    bundle = load_pretrained(args, CPU)
    with pytest.raises(ConfigError, match="BertLMHeadModel attends to later tokens"):
        check(bundle)
