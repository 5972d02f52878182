"""Types that cross borders: mapping, moving and pinning keep all fields."""

import torch

from mllm.structures import Batch, Encoded, LogicalBatch


def _batch(teacher=None):
    return Batch({"input_ids": torch.arange(6).view(2, 3)}, {"labels": torch.arange(6).view(2, 3)}, teacher)


def test_a_sample_is_as_long_as_its_labels():
    assert len(Encoded({"input_ids": torch.arange(7)}, {"labels": torch.arange(7)})) == 7


def test_a_function_reaches_every_tensor_of_a_batch_and_changes_no_other():
    batch = _batch(teacher={"input_ids": torch.ones(2, 3)})
    doubled = batch.map(lambda tensor: tensor * 2)
    for part in ("student", "targets", "teacher"):
        for name, tensor in vars(batch)[part].items():
            assert torch.equal(vars(doubled)[part][name], 2 * tensor)
    assert torch.equal(batch.student["input_ids"], torch.arange(6).view(2, 3))
    assert _batch().map(torch.neg).teacher is None


def test_all_tensors_of_a_batch_move_to_a_device():
    moved = _batch(teacher={"input_ids": torch.ones(2, 3)}).to("meta")
    assert {
        tensor.device.type for part in (moved.student, moved.targets, moved.teacher) for tensor in part.values()
    } == {"meta"}


def test_pinning_a_logical_batch_pins_every_piece_and_keeps_its_figures(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 100)  # needs a GPU outside of tests
    batch = LogicalBatch([_batch(), _batch()], samples=4, tokens=11, padded_tokens=12, truncated=1)
    pinned = batch.pin_memory()
    assert [int(piece.student["input_ids"][0, 0]) for piece in pinned.pieces] == [100, 100]
    assert (pinned.samples, pinned.tokens, pinned.padded_tokens, pinned.truncated) == (4, 11, 12, 1)
