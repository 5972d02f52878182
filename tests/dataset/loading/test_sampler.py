"""Tests of the sampler of logical batches."""

import pytest

from mllm.dataset.loading.sampler import LogicalBatchSampler
from mllm.errors import ConfigError


def _updates(world, batch_size, size=23, epoch=0, **options):
    ranks = []
    for rank in range(world):
        sampler = LogicalBatchSampler(size, batch_size, rank=rank, world=world, **options)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
    assert len({len(rank) for rank in ranks}) == 1
    return [sorted(d.index for share in shares for d in share if d.counted) for shares in zip(*ranks, strict=True)]


@pytest.mark.parametrize(("world", "batch_size"), [(2, 2), (4, 1)])
def test_an_update_has_the_same_samples_for_any_number_of_processes(world, batch_size):
    assert _updates(world, batch_size) == _updates(1, 4)


def test_every_sample_occurs_once_in_an_epoch():
    assert sorted(sum(_updates(3, 2), [])) == list(range(23))


def test_epochs_differ_and_repeat():
    assert _updates(1, 4, epoch=0) != _updates(1, 4, epoch=1)
    assert _updates(1, 4, epoch=1) == _updates(1, 4, epoch=1)


def test_a_process_without_a_sample_gets_a_padding_sample_that_does_not_count():
    sampler = LogicalBatchSampler(5, 1, rank=1, world=2)
    last = list(sampler)[-1]
    assert [draw.counted for draw in last] == [False]


def test_drop_last_drops_the_smaller_batch():
    sampler = LogicalBatchSampler(23, 4, drop_last=True)
    assert [len(batch) for batch in sampler] == [4] * 5
    assert len(sampler) == 5


def test_without_shuffling_the_order_is_that_of_the_dataset():
    assert [draw.index for batch in LogicalBatchSampler(5, 2, shuffle=False) for draw in batch] == list(range(5))


def test_drop_last_that_drops_all_samples_is_refused():
    with pytest.raises(ConfigError, match="dataloader_drop_last=True drops all 7 samples, because an update takes 8"):
        LogicalBatchSampler(7, 4, world=2, drop_last=True)
