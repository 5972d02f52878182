"""Tables of the answers of an evaluation."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np

from mllm.metrics.coco import rle
from mllm.metrics.scoring import Series
from mllm.report.run import answers
from mllm.report.run.answers import MAX_STRUCTURES, box_table


def test_a_label_in_each_row_takes_no_table_of_its_own(monkeypatch) -> None:
    """Phrases as labels: 40 frequent ones among 2,000 that stand once. All other rows count in the first line."""
    rng, made = random.Random(0), []

    class Counted(Series):
        def __init__(self, entry) -> None:
            made.append(entry)
            super().__init__(entry)

    monkeypatch.setattr(answers, "Series", Counted)
    labels = [f"phrase {number}" for number in range(2000)] + [f"often {n}" for n in range(40) for _ in range(n + 2)]
    rng.shuffle(labels)
    box = {"boxes": [[0.0, 0.0, 8.0, 8.0]], "reference_boxes": [[0.0, 0.0, 8.0, 8.0]]}
    rows = [{"prediction": "", "reference": "", "label": label, **box} for label in labels]
    masks = {"masks": [rle(np.ones((4, 4), bool))], "reference_masks": [rle(np.ones((4, 4), bool))]}
    rows += [{"prediction": "", "reference": "", "label": "organ", **masks}] * 99  # in the table of masks
    table = box_table(rows)
    counts = Counter(labels)
    assert len(made) == MAX_STRUCTURES + 1 and table[0].name == "all" and table[0].values == [len(labels), 0, 0]
    expected = [(f"often {n}", float(counts[f"often {n}"])) for n in reversed(range(10, 40))]
    assert [(row.name, row.values[0]) for row in table[1:]] == expected[:MAX_STRUCTURES]
