"""Tests of the collator: pieces of a logical batch, and failures that keep their message."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mllm.dataset.loading.collator import (
    EncodedDataset,
    LogicalCollator,
    cut_by_length,
    cut_in_order,
    padded_size,
)
from mllm.dataset.loading.sampler import Draw, LogicalBatchSampler
from mllm.dataset.loading.sharing import RowCollator
from mllm.errors import DataError
from mllm.models.encoding.packing import LAYOUT, packing
from mllm.structures import IGNORE, Batch, Encoded, Failure, Sample, Turn

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=20)
PAIRS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=20)


@given(st.one_of(LENGTHS.map(lambda lengths: [(length,) for length in lengths]), PAIRS), st.integers(1, 100))
def test_a_token_budget_bounds_every_padded_piece(sizes, budget):
    pieces = cut_by_length(sizes, None, budget)
    assert sorted(i for piece in pieces for i in piece) == list(range(len(sizes)))
    for piece in pieces:
        padded = sum(len(piece) * max(sequence) for sequence in zip(*(sizes[i] for i in piece), strict=True))
        assert padded_size([sizes[i] for i in piece]) == padded
        assert len(piece) == 1 or padded <= budget


@given(LENGTHS, st.integers(1, 5))
def test_without_a_budget_the_number_of_samples_of_a_piece_is_bounded(lengths, max_rows):
    pieces = cut_by_length([(length,) for length in lengths], max_rows, None)
    assert len(pieces) == -(-len(lengths) // max_rows)
    shortest = [min(lengths[i] for i in piece) for piece in pieces]
    longest = [max(lengths[i] for i in piece) for piece in pieces]
    assert all(before >= after for before, after in zip(shortest, longest[1:], strict=False))


class Rows:
    """Texts of growing length; one row is unreadable."""

    def __len__(self):
        return 6

    def sample(self, index, epoch=0):
        if index == 4:
            raise DataError("rows.jsonl, line 5: image a.png does not exist")
        return Sample([Turn("user", "q"), Turn("assistant", "a" * (index + 1 + epoch))])


def encode(sample):
    """Encode each letter of the answer as one token."""
    ids = torch.arange(len(sample.turns[-1].text))
    return Encoded({"input_ids": ids}, {"labels": ids.clone()})


def pad(samples):
    """Pad on the right with zeros."""
    width = max(len(sample) for sample in samples)
    rows = [torch.nn.functional.pad(sample.student["input_ids"], (0, width - len(sample))) for sample in samples]
    return Batch({"input_ids": torch.stack(rows)}, {"labels": torch.stack(rows)})


def test_a_failure_in_a_worker_process_keeps_its_message():
    dataset = EncodedDataset(Rows(), encode)
    sampler = LogicalBatchSampler(6, 6, shuffle=False)
    collate = LogicalCollator(pad, samples_per_piece=2)
    for workers in (0, 2):
        (batch,) = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
        assert batch.failures == (Failure("rows.jsonl, line 5: image a.png does not exist", (4, 0)),)
        assert (batch.samples, batch.tokens, batch.padded_tokens) == (5, 1 + 2 + 3 + 4 + 6, 12 + 6 + 1)
        assert [piece.targets["labels"].shape for piece in batch.pieces] == [(2, 6), (2, 3), (1, 1)]


@pytest.mark.parametrize(
    ("bounds", "rows"),
    [
        (dict(samples_per_piece=2), [[6, 4, 2], [3, 1]]),  # twice the longest sample
        (dict(samples_per_piece=1), [[6], [4, 2], [3, 1]]),
        (dict(samples_per_piece=1, tokens_per_piece=7), [[6, 1], [4, 3], [2]]),
        (dict(samples_per_piece=1, tokens_per_piece=3), [[6], [4], [3], [2, 1]]),
    ],
)
def test_packing_fills_rows_without_padding(bounds, rows):
    encoded = [encode(Sample([Turn("assistant", "a" * length)])) for length in (2, 6, 3, 4, 1)]
    batch = RowCollator(packing(pad), **bounds)(encoded)
    packed = [[int(row.max()) + 1 for row in piece.student["input_ids"]] for piece in batch.pieces]
    assert (packed, batch.tokens, batch.padded_tokens, batch.samples) == (rows, 16, 16, 5)
    assert all(piece.student[LAYOUT].leaders == tuple(range(piece.samples)) for piece in batch.pieces)
    assert not any(piece.student[LAYOUT].has_shared_tokens for piece in batch.pieces)


def test_tokens_of_source_and_target_count():
    def encode_pair(source, target):
        ids = torch.arange(source)
        return Encoded({"input_ids": ids, "decoder_input_ids": torch.arange(target)}, {"labels": torch.arange(target)})

    encoded = [encode_pair(8, 1), encode_pair(2, 6), encode_pair(1, 1)]
    batch = LogicalCollator(lambda chosen: Batch({}, {"labels": torch.zeros(len(chosen), 1)}), tokens_per_piece=28)(
        encoded
    )
    assert [len(piece.targets["labels"]) for piece in batch.pieces] == [2, 1]
    assert (batch.tokens, batch.padded_tokens) == (19, 2 * (8 + 6) + 2)


def test_the_epoch_reaches_the_dataset():
    dataset = EncodedDataset(Rows(), encode)
    assert len(dataset[Draw(0, epoch=0)]) == 1
    assert len(dataset[Draw(0, epoch=7)]) == 8


def test_a_padding_sample_has_no_labels():
    encoded = EncodedDataset(Rows(), encode)[Draw(3, 0, counted=False)]
    assert (encoded.targets["labels"] == IGNORE).all()
    assert encoded.student["input_ids"].tolist() == [0, 1, 2, 3]


def test_a_padding_sample_has_no_known_objects():
    def encode_boxes(sample):
        encoded = encode(sample)
        known = {"boxes_known": torch.tensor([True]), "masks_known": torch.tensor([True])}
        return Encoded(encoded.student, {**encoded.targets, "boxes": torch.rand(1, 4), **known})

    dataset = EncodedDataset(Rows(), encode_boxes)
    for counted in (True, False):
        targets = dataset[Draw(3, 0, counted=counted)].targets
        assert (targets["boxes_known"].tolist(), targets["masks_known"].tolist()) == ([counted], [counted])
        assert (targets["labels"] == IGNORE).all() == (not counted)
        assert targets["boxes"].any()


@given(LENGTHS, st.integers(1, 100), st.integers(1, 5))
def test_cutting_in_order_keeps_the_order_and_the_bounds(lengths, budget, max_rows):
    sizes = [(length,) for length in lengths]
    for pieces in (cut_in_order(sizes, None, budget), cut_in_order(sizes, max_rows, None)):
        assert [i for piece in pieces for i in piece] == list(range(len(lengths)))
    assert all(len(piece) <= max_rows for piece in cut_in_order(sizes, max_rows, None))
    for piece in cut_in_order(sizes, None, budget):
        assert len(piece) == 1 or len(piece) * max(lengths[i] for i in piece) <= budget


def test_the_samples_of_a_unit_stay_adjacent_and_keep_its_number():
    dataset = EncodedDataset(Rows(), encode)
    draws = [Draw(0, 0, unit=8), Draw(5, 0, unit=8), Draw(4, 0, unit=8), Draw(2, 0, unit=3), Draw(1, 0, unit=3)]
    batch = LogicalCollator(pad, samples_per_piece=3)([dataset[draw] for draw in draws])
    assert [piece.units for piece in batch.pieces] == [(8, 8, 3), (3,)]
    assert [piece.student["input_ids"].shape for piece in batch.pieces] == [(3, 6), (1, 2)]
    assert len(batch.failures) == 1


def test_an_unexpected_exception_of_a_row_becomes_its_failure():
    class Rows:
        def __len__(self):
            return 2

        def sample(self, index, epoch=0):
            return Sample([Turn("user", 1 // index)])

    dataset = EncodedDataset(Rows(), lambda sample: Encoded({}, {"labels": torch.zeros(1)}))
    failure = dataset[0]
    assert isinstance(failure, Failure)
    assert failure.message.startswith("row 1 of the data: it cannot be used (ZeroDivisionError: ")
    assert isinstance(dataset[1], Encoded)
