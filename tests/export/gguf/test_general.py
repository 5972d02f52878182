"""A GGUF file says where its model comes from, under which terms, and how it is talked to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf

from mllm.export.card import RESEARCH_ONLY, Facts, card_text
from mllm.export.gguf.general import TERMS, read_origin
from mllm.export.gguf.model import export_model

BASE = "google/gemma-3n-E4B-it"


def test_the_card_of_an_export_is_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card_text("merged", {"type": "causal-lm"}, Facts(base=BASE)))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": 64}))
    origin = read_origin(tmp_path, "gemma3n_text")
    assert (origin.name, origin.base, origin.chat_template) == (tmp_path.name, BASE, "{{ messages }}")
    assert (origin.license, origin.license_name, origin.license_link) == ("other", "gemma", TERMS["gemma"])
    assert origin.sampling["top_k"] == 64
    assert read_origin(tmp_path, "gemma3n_text", "first-aid", base="x/y").base == "x/y"


def test_without_a_card_the_family_tells_the_terms(tmp_path: Path) -> None:
    for name, terms in (("medgemma-4b-it", "health-ai-developer-foundations"), ("gemma-3-4b-it", "gemma")):
        (tmp_path / name).mkdir()
        assert read_origin(tmp_path / name, "gemma3").license_link == TERMS[terms]
    (tmp_path / "tiny-llama").mkdir()
    assert read_origin(tmp_path / "tiny-llama", "llama").license is None


def test_the_file_says_all_of_it(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoints("gemma3")
    config = json.loads((folder / "config.json").read_text())
    fields = gguf.GGUFReader(export_model(folder, tmp_path / "model.gguf", "q8_0")).fields
    said = {name: field.contents() for name, field in fields.items() if not name.startswith("tokenizer.ggml.")}
    assert said["general.description"] == RESEARCH_ONLY
    assert said["general.type"] == "model"
    assert said["gemma3.attention.sliding_window"] == config["sliding_window"] == 16
    assert said["gemma3.rope.freq_base"] == 1e6
    assert said["gemma3.rope.freq_base_swa"] == 1e4
    assert (said["gemma3.rope.scaling.type"], said["gemma3.rope.scaling.factor"]) == ("linear", 8)
    assert said["gemma3.attention.key_length"] == config["head_dim"]
    assert said["gemma3.context_length"] == config["max_position_embeddings"]
    assert abs(said["general.sampling.temp"] - 0.7) < 1e-6
    assert said["general.sampling.top_k"] == 64
    assert said["tokenizer.chat_template"] == (folder / "chat_template.jinja").read_text()
