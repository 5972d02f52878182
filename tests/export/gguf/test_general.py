"""Tests of the general metadata of GGUF files: origin, terms, chat template and sampling settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf

from mllm.export.card import RESEARCH_ONLY, card_text
from mllm.export.facts import Facts, write_facts
from mllm.export.gguf.general import read_origin
from mllm.export.gguf.model import export_model
from mllm.models.medgemma.family import TERMS

BASE = "google/gemma-3n-E4B-it"


def test_the_origin_of_an_export(tmp_path: Path) -> None:
    facts = Facts(BASE, {"type": "causal-lm"})
    write_facts(tmp_path, facts)
    (tmp_path / "README.md").write_text(card_text("merged", facts))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": 64}))
    origin = read_origin(tmp_path, "gemma3n_text")
    assert (origin.name, origin.base, origin.chat_template) == (tmp_path.name, BASE, "{{ messages }}")
    assert (origin.license, origin.license_name, origin.license_link) == ("other", "gemma", TERMS["gemma"].link)
    assert origin.sampling["top_k"] == 64
    assert read_origin(tmp_path, "gemma3n_text", "first-aid", base="x/y").base == "x/y"


def test_terms_follow_the_family_without_a_card(tmp_path: Path) -> None:
    for name, terms in (("medgemma-4b-it", TERMS["medgemma"]), ("gemma-3-4b-it", TERMS["gemma"])):
        (tmp_path / name).mkdir()
        assert read_origin(tmp_path / name, "gemma3").license_link == terms.link
    (tmp_path / "tiny-llama").mkdir()
    assert read_origin(tmp_path / "tiny-llama", "llama").license is None


def test_the_file_contains_the_metadata(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoints("gemma3")
    config = json.loads((folder / "config.json").read_text())
    fields = gguf.GGUFReader(export_model(folder, tmp_path / "model.gguf", "q8_0")).fields
    metadata = {name: field.contents() for name, field in fields.items() if not name.startswith("tokenizer.ggml.")}
    assert metadata["general.description"] == RESEARCH_ONLY
    assert metadata["general.type"] == "model"
    assert metadata["gemma3.attention.sliding_window"] == config["sliding_window"] == 16
    assert metadata["gemma3.rope.freq_base"] == 1e6
    assert metadata["gemma3.rope.freq_base_swa"] == 1e4
    assert (metadata["gemma3.rope.scaling.type"], metadata["gemma3.rope.scaling.factor"]) == ("linear", 8)
    assert metadata["gemma3.attention.key_length"] == config["head_dim"]
    assert metadata["gemma3.context_length"] == config["max_position_embeddings"]
    assert abs(metadata["general.sampling.temp"] - 0.7) < 1e-6
    assert metadata["general.sampling.top_k"] == 64
    assert metadata["tokenizer.chat_template"] == (folder / "chat_template.jinja").read_text()
