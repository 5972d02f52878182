"""Tests of the exporter of merged models: equal logits, dtypes, facts, and refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from mllm.errors import ConfigError
from mllm.export import comparison, merged
from mllm.export.facts import Facts, read_facts
from mllm.export.folder import update_figures
from mllm.protocols import Bundle
from mllm.run_files import REPORT
from mllm.structures import Batch, Sample, Turn

Loader = Callable[..., tuple[Bundle, dict[str, Any]]]


def _batch(bundle: Bundle) -> Batch:
    image = Image.fromarray(np.random.default_rng(7).integers(0, 256, (80, 60, 3), dtype=np.uint8))
    sample = Sample(turns=[Turn("user", "<image> Left or right?")], images=[image])
    return bundle.encoder.pad([bundle.encoder.prompt(sample)])


def test_logits_equal_those_of_the_unmerged_model(
    load: Loader, small_base: Path, small_adapter: Path, tmp_path: Path
) -> None:
    bundle, settings = load()
    batch = _batch(bundle)
    folder = merged.write(bundle, tmp_path / "merged", facts=Facts(str(small_base), settings))
    alone = AutoModelForImageTextToText.from_pretrained(folder).eval()
    base = AutoModelForImageTextToText.from_pretrained(small_base)
    with torch.no_grad():
        ours = alone(**batch.student).logits
        theirs = PeftModel.from_pretrained(base, small_adapter).eval()(**batch.student).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    report = json.loads((folder / REPORT).read_text())
    assert 0 <= report["max_abs_difference"] <= 1e-4
    assert report["compared_in"] == "float32"


def test_tied_weights_stay_tied(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load()
    folder = merged.write(bundle, tmp_path / "merged", facts=Facts(str(small_base), settings))
    with (
        safe_open(folder / "model.safetensors", "pt") as file,
        safe_open(small_base / "model.safetensors", "pt") as own,
    ):
        assert set(file.keys()) == set(own.keys())
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert json.loads((folder / REPORT).read_text())["tied_embeddings"]


def test_weights_are_written_in_the_requested_dtype(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load()
    facts = Facts(str(small_base), settings)
    folder = merged.write(bundle, tmp_path / "merged", facts=facts, dtype=torch.bfloat16)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    report = json.loads((folder / REPORT).read_text())
    assert (report["dtype"], report["compared_in"]) == ("bfloat16", "float32")


def test_a_rectangular_pool_survives(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load(image_token_len=128)
    batch = _batch(bundle)
    folder = merged.write(bundle, tmp_path / "merged", facts=Facts(str(small_base), settings))
    again, _ = load(model_name_or_path=str(folder), adapter_path=None)
    assert torch.equal(batch.student["input_ids"], _batch(again).student["input_ids"])
    with torch.no_grad():
        first, second = (one.model(**batch.student).hidden_BLD for one in (bundle, again))
    torch.testing.assert_close(first, second)
    assert "which stock transformers does not have" in (folder / "README.md").read_text()


def test_a_difference_is_refused(
    load: Loader, small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, settings = load()
    monkeypatch.setitem(comparison.TOLERANCE, torch.float32, 0.0)  # less than the rounding of fp32
    with pytest.raises(ConfigError, match="the merged logits differ"):
        merged.write(bundle, tmp_path / "merged", facts=Facts(str(small_base), settings))
    assert os.listdir(tmp_path) == []


def test_the_weights_that_are_written_are_compared(load: Loader, small_base: Path, tmp_path: Path) -> None:
    """In fp32 the merged model is exact; the largest weights do not fit into the fp16 in which it is written."""
    bundle, settings = load()
    model = bundle.model.pretrained
    with torch.no_grad():
        norm = model.model.language_model.layers[0].post_attention_layernorm.weight
        norm.fill_(1e5)
    with pytest.raises(ConfigError, match="the merged logits differ"):
        merged.write(bundle, tmp_path / "merged", facts=Facts(str(small_base), settings), dtype=torch.float16)
    assert os.listdir(tmp_path) == []


def test_rounding_to_the_written_dtype_is_in_the_report(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load()
    batch = _batch(bundle)
    facts = Facts(str(small_base), settings)
    folder = merged.write(bundle, tmp_path / "merged", facts=facts, dtype=torch.bfloat16)
    report = json.loads((folder / REPORT).read_text())
    assert report["max_abs_difference"] > 1e-4, "rounding to bf16 changes the logits"
    stored = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    rounded, _ = load()
    merged.merge_in_place(rounded, torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(stored(**batch.student).logits, rounded.model.pretrained(**batch.student).logits)


def test_facts_and_card_contain_figures_and_privacy(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load()
    record = {"guarantee": "(3, 1e-05)-differentially private", "outside_the_guarantee": [], "warnings": []}
    facts = Facts(str(small_base), settings, updates=7, privacy=record)
    folder = merged.write(bundle, tmp_path / "merged", facts=facts)
    update_figures(folder, {"accuracy": {"accuracy": 0.75}})
    written = read_facts(folder)
    assert written is not None
    assert (written.updates, written.privacy, written.figures) == (7, record, {"accuracy": {"accuracy": 0.75}})
    card = (folder / "README.md").read_text()
    assert "# Merged model" in card
    assert "**(3, 1e-05)-differentially private**" in card
    assert "| accuracy | 0.75 |" in card


def test_a_quantized_base_is_refused(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load(load_in_4bit=True)
    with pytest.raises(ConfigError, match="full-precision"):
        merged.write(bundle, tmp_path / "merged", facts=Facts(str(small_base), settings))


def test_a_model_without_adapter_is_refused(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load(adapter_path=None)
    with pytest.raises(ConfigError, match="no adapter to merge"):
        merged.write(bundle, tmp_path / "merged", facts=Facts(str(small_base), settings))
