"""The merged model says what base and adapter say together, and is refused where it would not."""

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
from mllm.export import merged, parity
from mllm.export.card import Facts
from mllm.structures import Batch, Bundle, Sample, Turn

Loader = Callable[..., tuple[Bundle, dict[str, Any]]]


def _batch(bundle: Bundle) -> Batch:
    image = Image.fromarray(np.random.default_rng(7).integers(0, 256, (80, 60, 3), dtype=np.uint8))
    sample = Sample(turns=[Turn("user", "<image> Left or right?")], images=[image])
    return bundle.encoder.pad([bundle.encoder.prompt(sample)])


def test_it_says_what_peft_says_unmerged(load: Loader, small_base: Path, small_adapter: Path, tmp_path: Path) -> None:
    bundle, settings = load()
    batch = _batch(bundle)
    folder = merged.write(bundle, tmp_path / "merged", settings=settings, facts=Facts(base=str(small_base)))
    alone = AutoModelForImageTextToText.from_pretrained(folder).eval()
    base = AutoModelForImageTextToText.from_pretrained(small_base)
    with torch.no_grad():
        ours = alone(**batch.student).logits
        theirs = PeftModel.from_pretrained(base, small_adapter).eval()(**batch.student).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    report = json.loads((folder / merged.REPORT).read_text())
    assert 0 <= report["max_abs_difference"] <= 1e-4
    assert report["compared_in"] == "float32"


def test_tied_weights_stay_tied(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load()
    folder = merged.write(bundle, tmp_path / "merged", settings=settings, facts=Facts(base=str(small_base)))
    with (
        safe_open(folder / "model.safetensors", "pt") as file,
        safe_open(small_base / "model.safetensors", "pt") as own,
    ):
        assert set(file.keys()) == set(own.keys())
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert json.loads((folder / merged.REPORT).read_text())["tied_embeddings"]


def test_it_is_written_in_the_dtype_that_is_asked_for(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load()
    facts = Facts(base=str(small_base))
    folder = merged.write(bundle, tmp_path / "merged", settings=settings, facts=facts, dtype=torch.bfloat16)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    report = json.loads((folder / merged.REPORT).read_text())
    assert (report["dtype"], report["compared_in"]) == ("bfloat16", "float32")


def test_a_rectangular_pool_survives(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load(image_token_len=128)
    batch = _batch(bundle)
    folder = merged.write(bundle, tmp_path / "merged", settings=settings, facts=Facts(base=str(small_base)))
    again, _ = load(model_name_or_path=str(folder), adapter_path=None)
    assert torch.equal(batch.student["input_ids"], _batch(again).student["input_ids"])
    with torch.no_grad():
        first, second = (one.model(**batch.student).hidden_BLD for one in (bundle, again))
    torch.testing.assert_close(first, second)
    assert "stock transformers builds the square pool" in (folder / "README.md").read_text()


def test_a_difference_is_refused(
    load: Loader, small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, settings = load()
    monkeypatch.setitem(parity.TOLERANCE, torch.float32, 0.0)  # less than fp32's own rounding
    with pytest.raises(ConfigError, match="the merged logits differ"):
        merged.write(bundle, tmp_path / "merged", settings=settings, facts=Facts(base=str(small_base)))
    assert os.listdir(tmp_path) == []


def test_a_quantized_base_is_refused(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load(load_in_4bit=True)
    with pytest.raises(ConfigError, match="full-precision"):
        merged.write(bundle, tmp_path / "merged", settings=settings, facts=Facts(base=str(small_base)))


def test_a_model_without_adapter_is_refused(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load(adapter_path=None)
    with pytest.raises(ConfigError, match="no adapter to merge"):
        merged.write(bundle, tmp_path / "merged", settings=settings, facts=Facts(base=str(small_base)))
