"""The model card says what is known, under which terms, and nothing that was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mllm.export.card import RESEARCH_ONLY, Facts, card_text, facts_of, terms_of

SETTINGS: dict[str, Any] = dict(
    type="medgemma", image_size=None, image_token_len=None, max_length=512, system=None, turn_end=None
)


def _header(card: str) -> dict[str, Any]:
    header = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(header, dict)
    return header


def test_it_names_base_data_settings_and_figures() -> None:
    facts = Facts(
        base="google/medgemma-4b-it",
        data=["train: `VQADataset`"],
        training={"lora_r": 16, "learning_rate": 2e-4, "adapter_path": None},
        figures={"accuracy": 0.91234567},
    )
    card = card_text("adapter", SETTINGS, facts)
    assert RESEARCH_ONLY in card
    assert "* train: `VQADataset`" in card
    assert "| lora_r | 16 |" in card
    assert "| learning_rate | 0.0002 |" in card
    assert "| accuracy | 0.9123 |" in card
    assert "adapter_path" not in card
    assert _header(card)["base_model"] == "google/medgemma-4b-it"
    assert _header(card)["license_name"] == "health-ai-developer-foundations"
    assert "--adapter THIS_FOLDER" in card


def test_what_was_not_measured_is_not_there() -> None:
    card = card_text("merged", SETTINGS, Facts(base="google/medgemma-4b-it"))
    assert "Figures" not in card
    assert "Data" not in card
    assert "--model THIS_FOLDER" in card
    assert _header(card)["library_name"] == "transformers"


def test_a_folder_is_no_name_on_the_hub(tmp_path: Path) -> None:
    assert "base_model" not in _header(card_text("adapter", SETTINGS, Facts(base=str(tmp_path))))


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
    card = card_text("adapter", SETTINGS | {"type": kind}, Facts(base=base))
    assert _header(card).get("license_name") == name
    assert "## Terms" in card


@pytest.mark.parametrize("tokens", [128, 32])
def test_a_rectangular_pool_is_announced(tokens: int) -> None:
    card = card_text("merged", SETTINGS | {"image_token_len": tokens}, Facts(base="google/medgemma-4b-it"))
    assert "stock transformers builds the square pool and refuses at the first image; load it with mllm" in card


def test_native_images_need_no_note_and_others_do() -> None:
    facts = Facts(base="google/medgemma-4b-it")
    assert "## Images" not in card_text("adapter", SETTINGS | {"image_token_len": 256, "image_size": 896}, facts)
    card = card_text("adapter", SETTINGS | {"image_size": 448}, facts)
    assert "448 pixels" in card
    assert "square pool" not in card


def test_a_tiny_base_is_called_random_and_bears_no_ones_terms() -> None:
    card = card_text("adapter", SETTINGS, Facts(base="ckpt/tiny-medgemma"))
    assert "tiny random model" in card
    assert "license_name" not in _header(card)
    assert "Health AI Developer Foundations" not in card


def test_a_table_keeps_its_shape() -> None:
    card = card_text("adapter", SETTINGS | {"system": "a | b\nc"}, Facts(base="google/medgemma-4b-it"))
    assert "| system | a \\| b c |" in card


def test_a_model_of_text_is_not_asked_about_images() -> None:
    card = card_text("merged", SETTINGS | {"type": "causal-lm"}, Facts(base="google/gemma-3n-E4B-it"))
    assert _header(card)["pipeline_tag"] == "text-generation"
    assert "image" not in card.replace("image_", "")
    assert "--question" in card


def test_gguf_files_have_a_card_too() -> None:
    card = card_text("gguf", SETTINGS | {"type": "causal-lm"}, Facts(base="google/gemma-3n-E4B-it"))
    assert _header(card)["library_name"] == "gguf"
    assert "ollama create NAME -f Modelfile" in card
    assert RESEARCH_ONLY in card


def test_what_a_card_says_can_be_said_again() -> None:
    facts = Facts(
        base="google/medgemma-4b-it",
        data=["train: `VQADataset`, 100 samples", "test: `VQADataset`, 10 samples"],
        training={"lora_r": 16, "learning_rate": 2e-4, "note": "a | b"},
        figures={"accuracy": 0.91234567, "updates": 300},
    )
    card = card_text("adapter", SETTINGS, facts)
    again = facts_of(card, facts.base)
    assert again.data == facts.data
    assert again.training == {"lora_r": "16", "learning_rate": "0.0002", "note": "a | b"}
    assert again.figures == {"accuracy": "0.9123", "updates": "300"}
    assert card_text("adapter", SETTINGS, again) == card
    assert terms_of(card).startswith("MedGemma is given under the Health AI Developer Foundations terms")


def test_a_card_of_another_tool_says_nothing() -> None:
    assert facts_of("# My model\n\nIt is good.\n", "x/y") == Facts(base="x/y", data=[], training={}, figures={})
    assert terms_of("# My model\n") == ""
