"""Tests of groups of samples about the same images, and of the order in which they are drawn."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from mllm.dataset.builder import build_dataset
from mllm.dataset.loading.sampler import LogicalBatchSampler
from mllm.dataset.loading.sharing import image_groups


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
