from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
from torch.utils.data import DataLoader

from mllm.dataset.phantoms.phantom import MODALITIES
from mllm.dataset.phantoms.questions import TASKS, plural, with_article
from mllm.dataset.single_image_dataset.dummy import DummyDataset
from mllm.errors import ConfigError


def answers(task: str, size: int = 28, **options) -> list[tuple]:
    dataset = DummyDataset(size, tasks=(task,), image_size=96, **options)
    return [(sample, sample.turns[0].text, sample.turns[1].text) for sample in dataset]


def components(mask: np.ndarray) -> int:
    """Return the number of 4-connected regions of a mask, by flood fill."""
    left, count = {tuple(at) for at in np.argwhere(mask)}, 0
    while left:
        count, queue = count + 1, [left.pop()]
        while queue:
            y, x = queue.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            queue += near
    return count


def test_modalities_alternate_and_are_the_answer():
    rows = answers("modality")
    assert Counter(answer for _, _, answer in rows) == {modality: 4 for modality in MODALITIES}
    assert len({question for _, question, _ in rows}) > 2
    assert all(question.startswith("<image> ") for _, question, _ in rows)


def test_presence_count_and_box_match_the_masks():
    for sample, _, answer in answers("classification"):
        assert answer == ("yes" if sample.marks else "no")
    assert {answer for *_, answer in answers("classification")} == {"yes", "no"}
    for sample, _, answer in answers("counting"):
        merged = np.any([mark.mask for mark in sample.marks], axis=0) if sample.marks else np.zeros((1, 1))
        assert int(answer) == components(merged)
    for sample, _, answer in answers("detection"):
        (mark,) = sample.marks
        assert re.fullmatch(r"\[\d+, \d+, \d+, \d+\]", answer)
        rows, columns = np.nonzero(mark.mask)
        assert json.loads(answer) == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert tuple(json.loads(answer)) == mark.box


def test_the_width_follows_from_the_spacing_in_the_question():
    for sample, question, answer in answers("regression"):
        spacing = float(re.search(r"A pixel is ([\d.e-]+) mm wide", question)[1])
        number, unit = answer.split()
        ((name, value),) = sample.measures.items()
        assert unit == "mm"
        assert name.endswith("width")
        assert float(number) == pytest.approx(value, rel=0.006)
        assert 0 < value / spacing < 96


def test_a_report_has_two_true_sentences():
    for sample, _, answer in answers("report"):
        assert len(re.findall(r"[a-z]\.(?: |$)", answer)) == 2
        if not sample.marks:
            assert "There is no " in answer
        elif len(sample.marks) > 1:
            assert f"There are {len(sample.marks)} " in answer
        if sample.marks:
            x1, y1, x2, y2 = max(sample.marks, key=lambda mark: mark.mask.sum()).box
            side = "left" if (x1 + x2) / 2 < 48 else "right"
            assert f"{'upper' if (y1 + y2) / 2 < 48 else 'lower'} {side}" in answer


def test_every_modality_has_the_same_share_of_every_task():
    dataset = DummyDataset(len(TASKS) * len(MODALITIES), image_size=64)
    assert [dataset[i].turns[1].text for i in range(0, len(dataset), len(TASKS))] == list(MODALITIES)
    numbers = [dataset[i].turns[1].text for i in range(3, len(dataset), len(TASKS))]
    assert all(number in "012345" for number in numbers)


def test_a_sample_depends_on_seed_and_index_and_its_phrasing_on_the_epoch():
    one, same, other = DummyDataset(8, seed=1), DummyDataset(99, seed=1), DummyDataset(8, seed=2)
    for index in range(8):
        assert one.sample(index).images[0].tobytes() == same.sample(index).images[0].tobytes()
        assert one.sample(index, 3).images[0].tobytes() == one.sample(index).images[0].tobytes()
        assert one.sample(index, 3).turns == same.sample(index, 3).turns
        assert one.sample(index).turns[1] == one.sample(index, 3).turns[1]
    assert len({one.sample(0, epoch).turns[0].text for epoch in range(12)}) > 1
    pictures = [{dataset[i].images[0].tobytes() for i in range(8)} for dataset in (one, other)]
    assert not pictures[0] & pictures[1]
    assert not {one.group(i) for i in range(8)} & {other.group(i) for i in range(8)}


def _digest(samples: list) -> list[tuple]:
    return [(sample.turns, sample.images[0].tobytes()) for sample in samples]


def test_workers_generate_equal_images():
    dataset = DummyDataset(6, image_size=64)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=_digest, multiprocessing_context="fork")
    assert [item for batch in loader for item in batch] == _digest(list(dataset))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tasks=("count",)), "unknown task 'count': did you mean 'counting'"),
        (dict(modalities=("PET",)), "unknown modality 'PET'; known are CT, "),
        (dict(tasks=()), "at least one task"),
        (dict(size=0), "size must be at least 1"),
        (dict(image_size=10), "image_size must be at least 32"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DummyDataset(**options)


def test_plurals_and_articles():
    assert [plural(noun) for noun in ("nodule", "opacity", "bright mass")] == ["nodules", "opacities", "bright masses"]
    assert [with_article(n) for n in ("MRI", "CT", "X-ray", "opacity")] == ["an MRI", "a CT", "an X-ray", "an opacity"]
