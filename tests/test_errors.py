"""Sentences that help."""

import pytest
import torch

from mllm.errors import (
    ConfigError,
    DataError,
    TrainingError,
    UserError,
    advise_on_memory,
    hint,
    is_out_of_memory,
    nearest_names,
)

KEYS = ["lora_r", "lora_alpha", "lora_dropout", "image_size"]


@pytest.mark.parametrize(
    ("name", "expected"), [("lora_R", ["lora_r"]), ("imagesize", ["image_size"]), ("LORA_ALPHA", ["lora_alpha"])]
)
def test_near_names_are_found_whatever_their_case(name, expected):
    assert nearest_names(name, KEYS, count=1) == expected


def test_nothing_is_near_what_is_far():
    assert nearest_names("epochs", KEYS) == []


@pytest.mark.parametrize(
    ("name", "known", "tail"),
    [
        ("lora_rr", KEYS, ": did you mean 'lora_r'?"),
        ("epochs", ["b", "a"], "; known are a, b"),
        ("epochs", [], ""),
    ],
)
def test_the_tail_of_a_sentence(name, known, tail):
    assert hint(name, known) == tail


def test_what_a_user_can_mend_is_one_kind_of_error():
    assert all(issubclass(kind, UserError) for kind in (ConfigError, DataError, TrainingError))


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: no")]
)
def test_every_kind_of_short_memory_gets_the_advice(error):
    assert is_out_of_memory(error)
    advice = advise_on_memory("Lower max_length", " at step 3")
    with pytest.raises(TrainingError, match="out of memory at step 3. Lower max_length"), advice:
        raise error


def test_other_errors_keep_their_kind():
    with pytest.raises(RuntimeError, match="shapes"), advise_on_memory("Lower max_length"):
        raise RuntimeError("shapes differ")
