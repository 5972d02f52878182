"""Outputs of processors: an unknown name or length is refused."""

from __future__ import annotations

import pytest
import torch

from mllm.errors import ConfigError
from mllm.models.encoding.processor_outputs import joined, selected

MASK = torch.tensor([True, False])


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            {"qformer_input_ids": torch.ones(1, 5)},
            "P returns 'qformer_input_ids', and it is not known .*; choose a check",
        ),
        (
            {"attention_mask": torch.ones(1, 3)},
            r"P returns 'attention_mask' of shape \[1, 3\] for 2 tokens: .*; choose",
        ),
    ],
)
def test_an_unknown_output_is_refused(outputs: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        selected({"input_ids": torch.tensor([[1, 2]]), **outputs}, MASK, "P")


def test_labels_of_a_processor_are_left_out_and_outputs_of_tokens_are_selected() -> None:
    outputs = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([[1, 2]]), "pixel_values": torch.ones(3, 4)}
    chosen = selected(outputs, MASK, "P")
    assert chosen.keys() == {"input_ids", "pixel_values"} and chosen["input_ids"].tolist() == [1]
    assert chosen["pixel_values"].shape == (3, 4)


def test_patches_in_one_row_are_joined_at_its_end() -> None:
    samples = [
        {
            "input_ids": torch.tensor([1, 2]),
            "pixel_values": torch.full((1, 3, 2, 4), 1.0),
            "target_sizes": torch.ones(1, 2),
        },
        {
            "input_ids": torch.tensor([3]),
            "pixel_values": torch.full((1, 3, 2, 6), 2.0),
            "target_sizes": torch.ones(2, 2),
        },
    ]
    batch = joined(samples, pad_id=0, side="right")
    assert batch["pixel_values"].shape == (1, 3, 2, 10) and batch["target_sizes"].shape == (3, 2)
    assert batch["pixel_values"][0, 0, 0].tolist() == [1.0] * 4 + [2.0] * 6
