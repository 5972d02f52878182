"""Tests of `mllm.engine.learner`: losses as sums and counts, and the state of trained tensors."""

import pytest
import torch


def test_terms_add_up_and_counts_divide(make_trainer):
    trainer = make_trainer(samples_per_piece=2)
    learner, batch = trainer.learner.eval(), trainer.first_batch()
    counts = sum(learner.counts(piece.targets)["next_token"] for piece in batch.pieces)
    shares = [learner(piece.student, piece.targets, counts={"next_token": counts}) for piece in batch.pieces]
    whole = make_trainer(samples_per_piece=99)
    (piece,) = whole.first_batch().pieces
    expected = whole.learner.eval()(piece.student, piece.targets)
    torch.testing.assert_close(sum(share["loss"] for share in shares), expected["loss"])
    torch.testing.assert_close(sum(share["next_token"] for share in shares), expected["next_token"])


def test_samples_reduction_is_the_mean_of_means(make_trainer):
    trainer = make_trainer(samples_per_piece=99)
    learner, (piece,) = trainer.learner.eval(), trainer.first_batch().pieces
    alone = []
    for row in range(piece.targets["labels"].shape[0]):
        tokens = {name: tensor[row : row + 1] for name, tensor in piece.student.items() if name != "pixel_values"}
        if piece.student["token_type_ids"][row].any():
            images_before = int(piece.student["token_type_ids"][:row].any(dim=1).sum())
            tokens["pixel_values"] = piece.student["pixel_values"][images_before : images_before + 1]
        alone.append(learner(tokens, {"labels": piece.targets["labels"][row : row + 1]})["loss"])
    learner.reduction = "samples"
    torch.testing.assert_close(learner(piece.student, piece.targets)["loss"], torch.stack(alone).mean())


def test_the_state_contains_only_trained_tensors(make_trainer):
    learner = make_trainer().learner
    state = learner.state_dict()
    assert state
    assert all("lora_" in name for name in state)
    assert set(state) == {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    other = make_trainer().learner
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    report = other.load_state_dict(state, strict=False)
    assert not report.missing_keys
    assert not report.unexpected_keys
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_a_missing_trained_tensor_is_reported(make_trainer):
    learner = make_trainer().learner
    state = dict(learner.state_dict())
    name = next(iter(state))
    del state[name]
    assert learner.load_state_dict(state, strict=False).missing_keys == [name]


def test_heads_and_added_rows_belong_to_the_state(make_trainer, make_model_with_heads, location_rows):
    learners = [make_trainer(parts=make_model_with_heads(), rows=location_rows()).learner for _ in range(2)]
    with torch.no_grad():
        for parameter in learners[0].parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    state = learners[0].state_dict()
    assert {name.split(".")[1] for name in state} == {"backbone", "heads", "rows"}
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    report = learners[1].load_state_dict(state, strict=False)
    assert not report.missing_keys and not report.unexpected_keys
    loaded = dict(learners[1].named_parameters())
    assert all(torch.equal(value, loaded[name]) for name, value in state.items())


def test_the_terms_of_heads_do_not_depend_on_the_division(make_trainer, make_model_with_heads, location_rows):
    trainer = make_trainer(parts=make_model_with_heads(), rows=location_rows(), samples_per_piece=1)
    learner, batch = trainer.learner.eval(), trainer.first_batch()
    pieces = [learner.counts(piece.targets) for piece in batch.pieces]
    counts = {name: sum(piece[name] for piece in pieces) for name in pieces[0]}
    assert counts["box"] == counts["mask"] > 1
    shares = [learner(piece.student, piece.targets, counts=counts) for piece in batch.pieces]
    (whole,) = (
        make_trainer(parts=make_model_with_heads(), rows=location_rows(), samples_per_piece=9).first_batch().pieces
    )
    expected = learner(whole.student, whole.targets)
    for name in ("loss", "next_token", "box", "mask"):
        assert expected[name] > 0
        torch.testing.assert_close(sum(share[name] for share in shares), expected[name], rtol=1e-4, atol=1e-5)


def test_terms_are_weighted_in_the_loss(make_trainer):
    learner = make_trainer(samples_per_piece=99).learner
    (piece,) = make_trainer(samples_per_piece=99).first_batch().pieces
    learner.eval().objectives["next_token"].start, learner.objectives["next_token"].end = 2.0, 4.0
    learner.progress = 0.5
    output = learner(piece.student, piece.targets)
    assert output["loss"].item() == pytest.approx(3 * output["next_token"].item())
