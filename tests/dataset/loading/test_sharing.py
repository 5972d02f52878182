"""Tests of groups of samples about the same images, and of the order in which they are drawn."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.dataset.builder import build_dataset
from mllm.dataset.loading.sampler import LogicalBatchSampler
from mllm.dataset.loading.sharing import RowCollator, image_groups, shared_groups
from mllm.structures import Encoded


def encoded(ids: list[int], key: str | None = "a", image_end: int = 2) -> Encoded:
    labels = torch.zeros(len(ids), dtype=torch.long)
    return Encoded({"input_ids": torch.tensor(ids)}, {"labels": labels}, image_key=key, image_end=image_end)


def groups_of(samples: list[Encoded], room: int = 100) -> list[tuple[tuple[int, ...], int, int]]:
    return [(group.members, group.shared, group.tokens) for group in shared_groups(samples, room)]


def test_samples_with_equal_images_and_beginnings_share_them():
    samples = [encoded([1, 2, 3, 4]), encoded([1, 2, 3, 5, 6]), encoded([1, 2, 7], key="b"), encoded([1, 2, 8, 9])]
    assert groups_of(samples) == [((0, 1, 3), 2, 2 + 2 + 3 + 2), ((2,), 0, 3)]


@pytest.mark.parametrize(
    "other",
    [encoded([9, 2, 3]), encoded([1, 2, 3], key=None), encoded([1, 2, 3], key="b"), encoded([1, 2, 3], image_end=3)],
    ids=["text before the image", "not shared", "another image", "image after another text"],
)
def test_other_samples_share_nothing(other):
    samples = [replace(encoded([1, 2, 4]), image_end=other.image_end), other]
    assert groups_of(samples) == [((0,), 0, 3), ((1,), 0, 3)]


def test_features_and_pixels_are_not_in_one_group():
    assert len(groups_of([encoded([1, 2, 3]), replace(encoded([1, 2, 4]), has_features=True)])) == 2


def test_samples_of_unlike_numbers_of_images_are_in_rows_of_their_own():
    numbers = (2, 0, 1, 2)
    samples = [replace(encoded([1, 2, 3], key=None), images_per_row=number) for number in numbers]
    cuts = RowCollator(lambda *arguments: None, samples_per_piece=4).cut(samples)
    assert [[index for group in cut for index in group.members] for cut in cuts] == [[1], [2], [0, 3]]


def test_equal_samples_keep_their_last_token():
    assert groups_of([encoded([1, 2, 3]), encoded([1, 2, 3])]) == [((0, 1), 2, 4)]


def test_a_group_has_room_for_its_tokens():
    samples = [encoded([1, 2, number, number]) for number in range(3, 8)]
    assert groups_of(samples, room=6) == [((0, 1), 2, 6), ((2, 3), 2, 6), ((4,), 0, 4)]
    assert groups_of(samples, room=3) == [((number,), 0, 4) for number in range(5)]


def test_rows_with_the_same_files_and_options_are_in_one_group(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    images = ["a.png", "b.png", {"path": "a.png"}, ["a.png", "b.png"], None, None]
    rows = [{"question": "Q?", "answer": "A", **({"image": image} if image else {})} for image in images]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = build_dataset(dict(type="VQADataset", data_path=str(tmp_path / "rows.jsonl")), seed=0)
    assert image_groups(split).tolist() == [0, 1, 0, 2, 3, 4]


def test_groups_stay_together_and_every_sample_is_drawn_once():
    groups = np.array([0, 1, 0, 2, 1, 0, 2, 3])
    sampler = LogicalBatchSampler(8, 3, groups=groups, seed=1)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = [draw.index for update in sampler for draw in update]
        assert sorted(order) == list(range(8))
        drawn = groups[order]
        assert sum(drawn[1:] != drawn[:-1]) == 3, "each group is one run"
        orders.append(order)
    assert orders[0] != orders[1]


def test_processes_have_consecutive_samples_of_an_update():
    groups = np.arange(12) // 3
    whole = [draw.index for update in LogicalBatchSampler(12, 6, groups=groups) for draw in update]
    parts = [list(LogicalBatchSampler(12, 3, groups=groups, rank=rank, world=2)) for rank in range(2)]
    joined = [draw.index for updates in zip(*parts, strict=True) for share in updates for draw in share]
    assert joined == whole
