"""Tests of model cards: header, sections, terms and notes, rendered from facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mllm.export.card import RESEARCH_ONLY, card_text, privacy_lines
from mllm.export.facts import Facts, Split

SETTINGS: dict[str, Any] = dict(
    type="medgemma", image_size=None, image_token_len=None, max_length=512, system=None, turn_end=None
)
MEDGEMMA = "google/medgemma-4b-it"
RECORD = {
    "guarantee": "(3.0, 1e-05)-differentially private for each patient of the training data.",
    "epsilon_spent": 2.98765432,
    "steps": 225,
    "unit": "patient",
    "secure_mode": False,
    "target_epsilon": None,
    "ledger": [{"noise_multiplier": 0.7, "sample_rate": 0.01, "steps": 225}],
    "outside_the_guarantee": ["the validation split"],
    "warnings": ["secure_mode is off"],
}


def _header(card: str) -> dict[str, Any]:
    header = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(header, dict)
    return header


def _card(kind: str = "adapter", base: str = MEDGEMMA, **settings: Any) -> str:
    return card_text(kind, Facts(base, SETTINGS | settings))


def test_a_card_contains_base_data_settings_and_figures() -> None:
    facts = Facts(
        MEDGEMMA,
        SETTINGS,
        data={"train": Split("VQADataset", 1234)},
        training={"lora_r": 16, "learning_rate": 2e-4, "adapter_path": None},
        updates=300,
        figures={"accuracy": {"accuracy": 0.91234567}, "rec": {"accuracy": 0.5, "failed": None}},
        versions={
            "python": "3.12",
            "packages": {"mllm-medical": "0.1", "torch": "2.9", "av": "16"},
            "git_commit": None,
        },
    )
    card = card_text("adapter", facts)
    assert RESEARCH_ONLY in card
    assert "* train: `VQADataset`, 1,234 samples" in card
    assert "| lora_r | 16 |" in card
    assert "| learning_rate | 0.0002 |" in card
    assert "| updates | 300 |" in card
    assert "| accuracy | 0.9123 |" in card
    assert "| rec/accuracy | 0.5 |" in card
    assert "rec/failed" not in card
    assert "adapter_path" not in card
    assert "Trained with mllm-medical 0.1, torch 2.9." in card
    assert _header(card)["base_model"] == MEDGEMMA
    assert _header(card)["license_name"] == "health-ai-developer-foundations"
    assert "--adapter THIS_FOLDER" in card


def test_sections_without_facts_are_left_out() -> None:
    card = _card("merged")
    assert [line for line in card.splitlines() if line.startswith("## ")] == [
        "## How to load it",
        "## Settings",
        "## Terms",
    ]
    assert "--model THIS_FOLDER" in card
    assert _header(card)["library_name"] == "transformers"


@pytest.mark.parametrize("kind", ["adapter", "merged", "gguf"])
def test_every_card_of_a_private_run_has_a_privacy_section(kind: str) -> None:
    card = card_text(kind, Facts("google/vaultgemma-1b", {"type": "causal-lm"}, privacy=RECORD))
    section = card.split("## Privacy\n\n")[1].split("\n## ")[0]
    assert section.startswith(f"**{RECORD['guarantee']}**")
    for line in (
        "| epsilon_spent | 2.98765 |",
        "| steps | 225 |",
        "| unit | patient |",
        "| secure_mode | False |",
        "* the validation split",
        "* secure_mode is off",
    ):
        assert f"\n{line}\n" in f"{section}\n"
    assert "target_epsilon" not in section
    assert "ledger" not in section


def test_a_run_without_privacy_has_no_privacy_section() -> None:
    assert privacy_lines(None) == []
    assert "## Privacy" not in _card()


def test_a_local_folder_is_not_a_base_model_on_the_hub(tmp_path: Path) -> None:
    assert "base_model" not in _header(_card(base=str(tmp_path)))


@pytest.mark.parametrize(
    ("kind", "base", "name"),
    [
        ("medgemma", "ckpt/medgemma-4b-it", "health-ai-developer-foundations"),
        ("medgemma", "google/gemma-3-4b-it", "gemma"),
        ("image-text", "llava-hf/llava-1.5-7b-hf", None),
        ("causal-lm", "google/gemma-3n-E4B-it", "gemma"),
        ("seq2seq", "google/t5gemma-2b-2b-prefixlm-it", "gemma"),
        ("causal-lm", "meta-llama/Llama-3.2-1B", None),
    ],
)
def test_the_terms_are_those_of_the_base(kind: str, base: str, name: str | None) -> None:
    card = _card(base=base, type=kind)
    assert _header(card).get("license_name") == name
    assert "## Terms" in card


@pytest.mark.parametrize("tokens", [128, 32])
def test_a_rectangular_pool_is_announced(tokens: int) -> None:
    card = _card("merged", image_token_len=tokens)
    assert f"{tokens} tokens need a rectangular pool, which stock transformers does not have" in card


def test_only_changed_image_settings_have_a_note() -> None:
    assert "## Images" not in _card(image_token_len=256, image_size=896)
    card = _card(image_size=448)
    assert "448 pixels" in card
    assert "rectangular pool" not in card


def test_a_tiny_base_is_called_random_and_has_no_terms() -> None:
    card = _card(base="ckpt/tiny-medgemma")
    assert "tiny random model" in card
    assert "license_name" not in _header(card)
    assert "Health AI Developer Foundations" not in card


def test_a_table_cell_is_one_line_without_bars() -> None:
    assert "| system | a \\| b c |" in _card(system="a | b\nc")


def test_the_card_of_a_text_model_does_not_mention_images() -> None:
    card = _card("merged", "google/gemma-3n-E4B-it", type="causal-lm")
    assert _header(card)["pipeline_tag"] == "text-generation"
    assert "image" not in card.replace("image_", "")
    assert "--question" in card


def test_the_card_of_a_student_explains_its_parts() -> None:
    card = _card("merged", "google/gemma-3n-E4B-it", type="gemma3n-student", part="vision", heads={"measures": {}})
    assert "# Vision model for gemma-3n-E4B-it" in card
    assert _header(card)["pipeline_tag"] == "image-feature-extraction"
    assert "--model THIS_FOLDER --video" in card


def test_gguf_files_have_a_card() -> None:
    card = _card("gguf", "google/gemma-3n-E4B-it", type="causal-lm")
    assert _header(card)["library_name"] == "gguf"
    assert "ollama create NAME -f Modelfile" in card
    assert RESEARCH_ONLY in card


def test_only_encoding_settings_are_in_the_card() -> None:
    assert "load_in_4bit" not in _card(load_in_4bit=True)
