"""The updates of a training do not wait for a GPU, except where transformers does."""

from __future__ import annotations

import pytest

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.dataset.loading.sharing import RowCollator
from mllm.models.builder.builder import load_pretrained
from mllm.models.encoding.packing import packing
from mllm.objectives.text import NextToken
from tests.support.device_reads import record_reads

STEPS = 3
OF_A_RUN = ("_finalize_training", "meter.py:summary")
"""Reads after the last update."""
ASYNCHRONOUS = "engine/finite_check.py"
"""It reads copies that have arrived; on a CPU it reads at once."""
COUNT_OF_IMAGE_TOKENS = "torch_compilable_check"
"""Of transformers, once for each forward pass with images: it guards against images and tokens that do not match, and
waits for the passes before and for the vision tower."""
SKIPPED_MASK = "_ignore_causal_mask_sdpa"
"""Of transformers, once for each padded micro-batch and kind of layer: a mask without padding is left out."""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("padded", {COUNT_OF_IMAGE_TOKENS}),
        ("rows", {COUNT_OF_IMAGE_TOKENS}),
        ("heads", {COUNT_OF_IMAGE_TOKENS}),
        ("llava", {COUNT_OF_IMAGE_TOKENS, SKIPPED_MASK}),
        ("llava rows", {COUNT_OF_IMAGE_TOKENS}),
    ],
)
def test_an_update_waits_for_no_value_of_the_device(
    make_trainer, make_model_with_heads, location_rows, tiny_llava, monkeypatch, kind, expected
):
    options = {}
    if kind == "heads":
        options = {"parts": make_model_with_heads(), "rows": location_rows()}
    elif "llava" in kind:
        bundle = load_pretrained(ModelArgs("image-text", str(tiny_llava), lora_r=4, max_length=256), detect())
        options = {"parts": (bundle, {"next_token": NextToken()})}
    trainer = make_trainer(max_steps=STEPS, logging_steps=100, optim="adamw_torch_fused", **options)
    if "rows" in kind:
        trainer.learner.student.share_tokens(image_blocks="llava" not in kind)
        trainer.data_collator = RowCollator(packing(trainer.data_collator.pad), samples_per_piece=2)
    reads = record_reads(monkeypatch)
    trainer.train()
    assert any(ASYNCHRONOUS in place for place in reads), "losses are tensors of the device"
    ignored = (*OF_A_RUN, ASYNCHRONOUS)
    waits = {place: count for place, count in reads.items() if not any(name in place for name in ignored)}
    assert {place.rpartition(":")[2] for place in waits} <= expected, waits
    assert sum(waits.values()) <= STEPS * 4
