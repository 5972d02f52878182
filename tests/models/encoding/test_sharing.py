"""Samples that share tokens have the states, losses and gradients of samples alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.engine.builder import build_learner
from mllm.models.builder.builder import load_pretrained
from mllm.models.encoding.packing import LAYOUT, RowLayout
from mllm.models.encoding.sharing import SharedRow
from mllm.predict.stored_features import store_test_features
from mllm.run.data import open_splits, prepare_data
from mllm.run.prepare import prepare_args
from mllm.structures import Encoded, Sample, Turn
from tests.support.flex import flex_on_cpu

CONFIG = """
_base_ = ["{checkout}/config/_base_/models/{base}.py", "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="{model}", lora_r=4, lora_dropout=0.0, {more})
data_args = dict(train=dict(type="VQADataset", data_path="rows.jsonl"), {layout})
training_args = dict(per_device_train_batch_size=3, dataloader_num_workers=0, gradient_checkpointing={checkpointing})
"""
QUESTIONS = {"Is there an effusion?": "no", "What is seen?": "a scan of the left lung", "Why?": "a shadow"}
CHECKOUT = Path(__file__).resolve().parents[3]
MODELS = {
    "medgemma": ("tiny_medgemma", "medgemma", "image_size=112, image_token_len=16, max_length=256"),
    "llava": ("tiny_llava", "image_text", "type='image-text', max_length=256"),
}


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Three images with three questions each, and two questions about two of them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(f"{number}.png")
    table = [
        {"image": f"{number}.png", "question": question, "answer": answer, "patient": str(number)}
        for number in range(3)
        for question, answer in QUESTIONS.items()
    ]
    table += [
        {"image": ["0.png", "1.png"], "question": "Which?", "answer": "left", "patient": "0"},
        {"image": ["0.png", "1.png"], "question": "Who?", "answer": "nobody", "patient": "0"},
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))


def update(request, name: str, layout: str, stores: bool = False, checkpointing: bool = False):
    """Return the pieces of an update with rows and a text, its loss, and the gradients of the adapter."""
    fixture, base, more = MODELS[name]
    model = request.getfixturevalue(fixture)
    Path("run.py").write_text(
        CONFIG.format(checkout=CHECKOUT, base=base, model=model, more=more, layout=layout, checkpointing=checkpointing)
    )
    config, hardware = prepare_args("run.py")
    torch.manual_seed(0)
    bundle = load_pretrained(config.model_args, hardware)
    for parameter_name, parameter in bundle.model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.05)
    learner, splits = build_learner(config, bundle), open_splits(config)
    if checkpointing:
        learner.student.enable_checkpointing({"use_reentrant": False})
        learner.train()
    data = prepare_data(config, hardware, bundle, bundle.encoder, splits)
    if stores:
        store_test_features(config, bundle, splits["train"])
    text = bundle.encoder.encode(Sample([Turn("user", "Why?"), Turn("assistant", "a shadow")]))
    pieces = data.collate([data.train_dataset[index] for index in (0, 9, 1, 3, 10, 2, 4, 6, 8)] + [text]).pieces
    count = sum(learner.counts(piece.targets)["next_token"] for piece in pieces)
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    loss, gradients = 0.0, [torch.zeros_like(parameter) for parameter in trained]
    for piece in pieces:
        part = learner(piece.student, piece.targets, counts={"next_token": count})["loss"]
        loss += float(part.detach())
        for total, gradient in zip(gradients, torch.autograd.grad(part, trained), strict=True):
            total += gradient
    return pieces, loss, gradients


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("stores", "checkpointing"), [(False, True), (True, False)])
def test_an_update_is_that_of_samples_without_sharing(request, rows, name, stores, checkpointing):
    _, loss, gradients = update(request, name, "share_images=False")
    pieces, shared_loss, shared_gradients = update(request, name, "share_images=True", stores, checkpointing)
    assert any(piece.student[LAYOUT].has_shared_tokens for piece in pieces)
    assert shared_loss == pytest.approx(loss, rel=1e-6)
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(shared_gradients, gradients, strict=True))
    assert worst < 2e-5 and all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", MODELS)
def test_an_update_of_packed_images_is_that_of_padded_ones(request, rows, name):
    _, loss, gradients = update(request, name, "packing=False")
    pieces, packed_loss, packed_gradients = update(request, name, "packing=True")
    assert all(piece.student[LAYOUT].leaders == tuple(range(piece.samples)) for piece in pieces)
    assert any(piece.samples > 1 for piece in pieces) and packed_loss == pytest.approx(loss, rel=1e-6)
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(packed_gradients, gradients, strict=True))
    assert worst < 2e-5 and all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("layout", ["share_images=True", "packing=True"])
def test_an_update_with_flex_attention_is_that_with_sdpa(request, rows, layout, monkeypatch):
    """In Gemma 3, with sliding windows and image blocks; layers are computed again in the backward pass."""
    _, loss, gradients = update(request, "medgemma", layout)
    attend = flex_on_cpu(monkeypatch)
    monkeypatch.setattr("mllm.run.data.attention_of_rows", lambda *arguments: attend)
    pieces, flex_loss, flex_gradients = update(request, "medgemma", layout, checkpointing=True)
    assert any(piece.samples > 1 for piece in pieces) and flex_loss == pytest.approx(loss, rel=1e-6)
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(flex_gradients, gradients, strict=True))
    assert 0 < worst < 2e-5


def test_own_logits_are_those_of_the_sample_alone(request, rows):
    pieces, _, _ = update(request, "medgemma", "share_images=True")
    fixture, base, more = MODELS["medgemma"]
    config, hardware = prepare_args("run.py")
    torch.manual_seed(0)
    bundle = load_pretrained(config.model_args, hardware)
    bundle.model.share_tokens(image_blocks=True)
    bundle.model.eval()
    for piece in pieces:
        with torch.no_grad():
            outputs = bundle.model(**piece.student)
            logits = outputs.vocabulary(outputs.hidden_BLD)
        for sample, mask in enumerate(piece.student["attention_mask"]):
            positions = torch.arange(int(mask.sum()) - 3, int(mask.sum()))
            alone = bundle.model.own_logits(piece.student, sample, positions)
            torch.testing.assert_close(alone, logits[sample, positions], rtol=1e-4, atol=1e-4)


def test_a_row_has_shared_tokens_once():
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    types = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 1, 0, 0, 0]])
    students = [{"input_ids": mask[i, :n], "token_type_ids": types[i, :n]} for i, n in enumerate((4, 5, 3))]
    layout = RowLayout.of([Encoded(student, {}) for student in students], [0, 0, 2], [3, 3, 0])
    assert SharedRow.of(mask, layout).segments.items[0].blocks == ()
    row = SharedRow.of(mask, layout, image_blocks=True)
    assert row.sample_T.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 3, 4, 0, 1, 2]]
    spans = [(segment.start, segment.end, segment.prefix, segment.blocks) for segment in row.segments.items]
    assert spans == [(0, 4, (), ((1, 3),)), (4, 6, ((0, 3),), ()), (6, 9, (), ((1, 2),))]
    ids = torch.arange(15).view(3, 5)
    assert row.pack(ids).tolist() == [[0, 1, 2, 3, 8, 9, 10, 11, 12]]
    states = row.unpack(torch.arange(1.0, 10.0)[None, :, None])[..., 0]
    assert states.tolist() == [[1, 2, 3, 4, 0], [1, 2, 3, 5, 6], [7, 8, 9, 0, 0]]


def test_a_sample_shares_tokens_that_its_leader_shares():
    mask = torch.ones(4, 5, dtype=torch.long)
    row = SharedRow.of(mask, RowLayout((0, 0, 1, 2), (0, 2, 4, 5), (5,) * 4, ((),) * 4))
    assert row.sample_T.tolist() == [0] * 5 + [1] * 3 + [2]
    assert [(segment.start, segment.end, segment.prefix) for segment in row.segments.items] == [
        (0, 5, ()),
        (5, 8, ((0, 2),)),
        (8, 9, ((0, 2), (5, 7))),
    ]
    assert row.source_BL.tolist() == [[0, 1, 2, 3, 4], [0, 1, 5, 6, 7], [0, 1, 5, 6, 8], [0, 1, 5, 6, 8]]
