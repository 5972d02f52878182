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
def test_similar_names_are_found_in_any_case(name, expected):
    assert nearest_names(name, KEYS, count=1) == expected


def test_a_name_resembles_the_names_that_begin_with_it_and_the_first_of_them_is_suggested():
    assert nearest_names("adamm", ["adalomo", "adamw_torch", "adamw_8bit"]) == ["adamw_torch", "adamw_8bit", "adalomo"]
    assert nearest_names("lr", ["lr_scheduler_type"]) == []  # it is the learning rate


def test_different_names_are_not_similar():
    assert nearest_names("epochs", KEYS) == []


@pytest.mark.parametrize(
    ("name", "known", "tail"),
    [
        ("lora_rr", KEYS, ": did you mean 'lora_r'?"),
        ("epochs", ["b", "a"], "; known are a, b"),
        ("epochs", [], ""),
    ],
)
def test_the_end_of_a_message(name, known, tail):
    assert hint(name, known) == tail


def test_errors_of_the_user_have_one_base_class():
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
