"""Tests of the comparison of a sample in a padded batch with the same sample alone."""

from dataclasses import replace

import pytest
import torch
from family_checkpoints.image_checks import conversation, picture
from family_checkpoints.parts import SIZES, byte_tokenizer, chat, ids_of
from family_checkpoints.records import Case
from family_checkpoints.refused_image_text import hunyuan_vl
from transformers import LlamaConfig, LlamaForCausalLM

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.dataset.loading.collator import LogicalCollator
from mllm.dataset.loading.sharing import RowCollator
from mllm.engine.padding_check import check_padding, padded_pair
from mllm.errors import ConfigError
from mllm.models.auto import load as auto_load
from mllm.models.builder.builder import load_pretrained
from mllm.models.encoding.packing import packing
from mllm.structures import IGNORE
from mllm.tiny.parts import random_model

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
OTHER_STATES = "computes other states for a sample in a batch with a longer one"


def llama(folder, **changes):
    """Return a tiny Llama."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat()
    model = random_model(LlamaForCausalLM, LlamaConfig(**{**SIZES, **ids_of(tokenizer), **changes}), seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    bundle = load_pretrained(ModelArgs("causal-lm", str(folder), lora_r=2, max_length=1024), CPU)
    bundle.model.eval()
    return bundle


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """A Llama whose states do not depend on padding."""
    return llama(tmp_path_factory.mktemp("usual"))


def encoded(bundle, lengths=(1, 40, 9)):
    """Return samples with answers of some numbers of words."""
    return [bundle.encoder.encode(conversation(answer="left " * length)) for length in lengths]


def check(bundle, samples, **options):
    collate = LogicalCollator(bundle.encoder.pad, **options)
    pair = padded_pair(collate, [samples])
    if pair is not None:
        with torch.no_grad():
            states = bundle.model(**pair.together.student).hidden_BLD
        check_padding(bundle.model, pair, states, rounds=False)
    return pair


def test_the_pair_has_the_longest_and_the_shortest_sample(usual):
    samples = encoded(usual)
    pair = check(usual, samples)
    assert pair.together.student["attention_mask"].sum(dim=1).tolist() == [len(samples[1]), len(samples[0])]
    assert torch.equal(pair.alone.student["input_ids"][0], samples[0].student["input_ids"])


def test_two_short_samples_are_the_pair_where_a_micro_batch_has_no_room_for_the_longest(usual):
    samples = encoded(usual)
    pair = check(usual, samples, tokens_per_piece=2 * len(samples[2]))
    assert pair.together.student["attention_mask"].sum(dim=1).tolist() == [len(samples[2]), len(samples[0])]


def test_there_is_no_pair_in_micro_batches_of_one_and_in_packed_rows(usual):
    samples = encoded(usual)
    assert padded_pair(LogicalCollator(usual.encoder.pad, samples_per_piece=1), iter([samples])) is None
    assert padded_pair(RowCollator(packing(usual.encoder.pad), samples_per_piece=3), iter([samples])) is None
    assert padded_pair(LogicalCollator(usual.encoder.pad), iter([samples[:1]])) is None


def test_the_next_update_is_read_where_the_first_has_equal_lengths(usual):
    collate = LogicalCollator(usual.encoder.pad)
    equal, unequal = encoded(usual, (3, 3)), encoded(usual, (1, 9))
    pair = padded_pair(collate, iter([equal, unequal]))
    assert pair.together.student["attention_mask"].sum(dim=1).tolist() == [len(unequal[1]), len(unequal[0])]
    pair = padded_pair(collate, iter([equal]))
    assert pair.together.student["attention_mask"].all()


def test_a_sample_without_supervision_is_not_compared(usual):
    samples = encoded(usual)
    hidden = [replace(one, targets={"labels": torch.full_like(one.targets["labels"], IGNORE)}) for one in samples]
    assert padded_pair(LogicalCollator(usual.encoder.pad), iter([hidden])) is None


def test_positions_that_scale_with_the_longest_sample_of_a_batch_are_refused(tmp_path):
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    bundle = llama(tmp_path, max_position_embeddings=64, rope_parameters=rope)
    samples = encoded(bundle, (1, 200))
    with pytest.raises(ConfigError, match=f"LlamaForCausalLM {OTHER_STATES}.*per_device_train_batch_size=1"):
        check(bundle, samples)
    check(bundle, encoded(bundle, (1, 2)))  # both are within the 64 positions that the checkpoint knows
    assert check(bundle, samples, samples_per_piece=1) is None


def test_images_that_are_numbered_over_the_whole_batch_are_refused(tmp_path, monkeypatch):
    """HunYuan-VL, which its config refuses before."""
    monkeypatch.setattr(auto_load, "TYPES_OF_JOINT_POSITIONS", frozenset())
    folder = Case("hunyuan_vl", "image-text", hunyuan_vl).write(tmp_path)
    bundle = load_pretrained(ModelArgs("image-text", str(folder), lora_r=2, max_length=1024), CPU)
    bundle.model.eval()
    samples = [bundle.encoder.encode(conversation(picture(80, 60), answer="no " * count)) for count in (1, 9)]
    with pytest.raises(ConfigError, match=OTHER_STATES):
        check(bundle, samples)
