"""Tests of the table of cards."""

from __future__ import annotations

import pytest

from mllm.errors import ConfigError
from mllm.planning.cards import CARDS, CONTEXT, FRAGMENTATION, GIB, find_card, smallest_card, usable_memory


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("T4", "T4"),
        ("tesla t4", "T4"),
        ("NVIDIA GeForce RTX 3090", "RTX3090"),
        ("rtx-3090", "RTX3090"),
        ("A100", "A100-40"),
        ("A100 80GB", "A100-80"),
        ("h100", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100 80GB PCIe", "A100-80"),
        ("Tesla V100-PCIE-32GB", "V100-32"),
        ("NVIDIA H100 80GB HBM3", "H100"),
    ],
)
def test_names_of_cards(text, name):
    assert find_card(text).name == name


def test_an_unknown_card_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown GPU 'RTX3091': did you mean 'RTX3090'"):
        find_card("RTX3091")
    with pytest.raises(ConfigError, match="unknown GPU 'NVIDIA H100 PCIe'"):  # slower than the row of the table
        find_card("NVIDIA H100 PCIe")


def test_names_are_unique_and_every_card_has_a_source():
    assert len({card.name for card in CARDS}) == len(CARDS)
    assert all(card.source and card.half > 0 and card.single > 0 for card in CARDS)


def test_the_smallest_card():
    need = 20 * GIB
    assert smallest_card(need, (8, 0)).memory == 24
    assert smallest_card(need, (9, 0)).name == "RTX5090"
    assert smallest_card(1000 * GIB, (8, 0)) is None
    assert usable_memory(16 * GIB) == int((16 * GIB - CONTEXT) * (1 - FRAGMENTATION))
