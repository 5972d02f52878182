"""Preparation of a distillation: statistics of features are equal with and without the cache."""

import json
from pathlib import Path

import pytest
import torch
from command_fixtures import CHECKOUT
from PIL import Image

from mllm.dataset.base import SampleDataset
from mllm.engine.builder import build_learner
from mllm.engine.feature_cache import CachedTeacher, FeatureCache
from mllm.errors import DataError
from mllm.models.builder.builder import load_pretrained
from mllm.models.encoding.packing import LAYOUT
from mllm.models.vision_model import VisionModel
from mllm.objectives.features import RIDGE, FeatureMatch
from mllm.run.data import open_splits, prepare_data, scale_measures
from mllm.run.distill import (
    CacheReader,
    cache_features,
    fit_objectives,
    has_changing_images,
    load_teacher,
    release_teacher,
    training_encoder,
)
from mllm.run.prepare import prepare_args
from mllm.structures import Context, Outputs, Sample, Turn
from mllm.tiny.checkpoints import write_tiny

CONFIG = """
_base_ = ["{checkout}/config/_base_/models/gemma3n_student.py", "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="student")
distill_args = dict(teacher=dict(_delete_=True, type="medsiglip", model_name_or_path="teacher"), cache={cached})
objectives = dict(feature_match=dict(grid=2, normalize={normalize}))
data_args = dict(train={train}, on_error="raise")
training_args = dict(per_device_train_batch_size=2, dataloader_num_workers=0, report_to=[])
"""

HEARTS = dict(type="PhantomEchoDataset", size=6, image_size=48)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepare a run in the current directory; return its learner, its data and the first batch."""
    monkeypatch.chdir(tmp_path)
    write_tiny("medsiglip", "teacher", vision={"image_size": 28, "num_hidden_layers": 3})
    write_tiny("gemma3n-student", "student")

    def prepare(cached=True, normalize=True, train=HEARTS):
        Path("run.py").write_text(CONFIG.format(checkout=CHECKOUT, cached=cached, normalize=normalize, train=train))
        config, hardware = prepare_args("run.py")
        bundle = load_pretrained(config.model_args, hardware)
        teacher = load_teacher(config, hardware, bundle)
        learner = build_learner(config, bundle, teacher)
        splits = open_splits(config)
        scale_measures(config, bundle, splits["train"])
        cache = cache_features(config, teacher, splits)
        if cache is not None:
            release_teacher(learner, teacher)
        encoder = training_encoder(bundle, teacher, cache)
        fit_objectives(learner, encoder, splits["train"])
        data = prepare_data(config, hardware, bundle, encoder, splits)
        return learner, data.collate([data.train_dataset[index] for index in range(6)]).pieces

    return prepare


def spread_of(learner):
    (match,) = [module for module in learner.modules() if isinstance(module, FeatureMatch)]
    return match, {name: buffer for name, buffer in match.named_buffers() if "mean" in name or "std" in name}


@torch.no_grad()
def test_features_of_both_are_normalized_over_the_training_split(prepared):
    learner, pieces = prepared()
    match, spread = spread_of(learner)
    learner.eval()
    for side, module, place in (("student", learner.student, 0), ("teacher", learner.teacher, 1)):
        taps = [module(**getattr(piece, side)).taps for piece in pieces]
        for index, paths in enumerate(match.paths):
            values = torch.cat([tap[paths[place]].flatten(0, 1) for tap in taps]).double()
            torch.testing.assert_close(spread[f"{side}_mean_{index}"].double(), values.mean(0), rtol=1e-4, atol=1e-5)
            normal = (values - values.mean(0)) / spread[f"{side}_std_{index}"].double()
            deviation = normal.square().mean(dim=(0, 2, 3)).sqrt()
            assert deviation.max() < 1 + 1e-3 and deviation.median() > 1 - 1e-3


def test_the_cache_and_a_resident_teacher_give_the_same_bits(prepared):
    (cached, _), (resident, _) = prepared(cached=True), prepared(cached=False)
    ours, theirs = spread_of(cached)[1], spread_of(resident)[1]
    assert ours.keys() == theirs.keys() and len(ours) == 12
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_mixture_of_fixed_images_is_cached(prepared):
    parts = [{**HEARTS, "size": 2, "seed": seed} for seed in (1, 2)]
    learner, pieces = prepared(train=dict(type="MixedDataset", datasets=parts, weights=[1, 3], size=6))
    assert isinstance(learner.teacher, CachedTeacher) and len(pieces) == 3
    assert len(list(Path("exp/teacher_cache").rglob("*.safetensors"))) == 2 * 2 * 2  # patients, datasets, views


def test_one_dataset_of_changing_images_keeps_the_teacher(prepared):
    noisy = {**HEARTS, "transforms": [dict(type="GaussianNoise", std=5.0)]}
    learner, _ = prepared(train=dict(type="ConcatDataset", datasets=[{**HEARTS, "size": 30, "seed": 1}, noisy]))
    assert isinstance(learner.teacher, VisionModel)


def test_with_published_settings_features_are_unchanged(prepared):
    learner, _ = prepared(normalize=False)
    assert not spread_of(learner)[1]


def test_neither_an_offset_nor_a_scale_of_features_changes_a_normalized_distance():
    torch.manual_seed(0)
    student, teacher = torch.randn(9, 2, 3, 2, 2), torch.randn(9, 2, 5, 2, 2)
    known = {"views_known": torch.ones(9, 2, dtype=torch.bool)}

    def distance(narrow, wide, normalize=True):
        match = FeatureMatch(student_layers=["s"], teacher_layers=["t"], grid=2)
        torch.manual_seed(1)
        match.paths, match.projectors = [("s", "t")], torch.nn.ModuleList([torch.nn.Linear(3, 5)])
        if normalize:
            match.fit([{"s": one[None]} for one in narrow], [{"t": one[None]} for one in wide])
        with torch.no_grad():
            outputs = [Outputs(tap, taps={name: tap}) for name, tap in (("s", narrow), ("t", wide))]
            return match.total(Context(known, *outputs))

    moved = 0.01 * student + 3, 50 * teacher + torch.randn(5, 2, 2)
    torch.testing.assert_close(distance(*moved), distance(student, teacher), rtol=1e-3, atol=1e-3)
    assert distance(*moved, normalize=False).min() > 100 * distance(*moved).max()


def test_a_constant_channel_is_not_amplified():
    taps = torch.randn(20, 1, 1, 4, 2, 2).clone()
    taps[:, :, :, 1] = 7.0
    match = FeatureMatch(student_layers=["s"], teacher_layers=["t"], grid=2)
    match.paths, match.projectors = [("s", "t")], torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    match.fit([{"s": tap} for tap in taps], [{"t": tap} for tap in taps])
    spread = dict(match.named_buffers())
    assert 0.005 < spread["teacher_std_0"][1].item() < 0.02 and spread["teacher_std_0"][0].item() > 0.5


def test_projectors_start_at_the_minimum_of_the_ridge_regression():
    torch.manual_seed(0)
    student = torch.randn(30, 2, 3, 2, 2)
    teacher = torch.einsum("wc,bvchx->bvwhx", torch.randn(5, 3), student) + 0.1 * torch.randn(30, 2, 5, 2, 2)
    match = FeatureMatch(student_layers=["s"], teacher_layers=["t"], grid=2)
    match.paths, match.projectors = [("s", "t")], torch.nn.ModuleList([torch.nn.Linear(3, 5)])
    match.fit([{"s": student}], [{"t": teacher}])
    projector = match.projectors[0]
    known = torch.ones(30, 2, dtype=torch.bool)
    context = Context(
        {"views_known": known}, Outputs(student, taps={"s": student}), Outputs(teacher, taps={"t": teacher})
    )
    student.requires_grad_()
    distance = match.total(context).sum() / 60
    assert distance < 0.05  # of a variance of 1
    penalty = RIDGE * projector.weight.square().sum() / 5  # the distance is a mean over 5 channels
    (distance + penalty).backward()
    assert projector.weight.grad.abs().max() < 1e-5 and projector.bias.grad.abs().max() < 1e-5


def test_a_single_image_does_not_change_the_scale():
    match = FeatureMatch(student_layers=["s"], teacher_layers=["t"], grid=1)
    match.paths, match.projectors = [("s", "t")], torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    tap = torch.full((1, 1, 4, 1, 1), 3.0)
    match.fit([{"s": tap}], [{"t": tap}])
    spread = dict(match.named_buffers())
    assert spread["teacher_std_0"].eq(1).all() and spread["student_std_0"].eq(1).all()
    assert spread["teacher_mean_0"].eq(3).all()


class Pictures(SampleDataset):
    """Two patients, whose images may differ between epochs."""

    def __init__(self, changes: bool) -> None:
        self.changes = changes

    def __len__(self) -> int:
        return 2

    def describe(self, index: int, epoch: int = 0) -> str:
        return f"picture {index}"

    def group(self, index: int, epoch: int = 0) -> str | None:
        return None

    def sample(self, index: int, epoch: int = 0) -> Sample:
        gray = 100 * index + (epoch if self.changes else 0)
        return Sample([Turn("user", "")], images=[Image.new("RGB", (4, 4), (gray,) * 3)], views=["ED"])


@pytest.mark.parametrize("changes", [True, False])
def test_changing_images_are_detected(changes: bool):
    assert has_changing_images(Pictures(changes)) is changes


def test_an_image_that_the_cache_lacks_is_named(tmp_path):
    sample = Sample([Turn("user", "")], images=[Image.new("RGB", (4, 4))], views=["ED"], source="a.avi")
    with pytest.raises(DataError, match=r"a.avi: the view 'ED' is not in the teacher's cache"):
        CacheReader(FeatureCache(tmp_path, "a" * 40), ["ED"]).encode(sample)


WORDS = """
_base_ = ["{checkout}/config/_base_/models/gemma3n_text.py", "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="student", max_length=128)
distill_args = dict(teacher=dict(type="causal-lm", model_name_or_path="teacher"))
objectives = dict(logit_match=dict(type="LogitMatch", weight=0.9))
data_args = dict(train=dict(type="TextQADataset", data_path="rows.jsonl"), packing={packing})
training_args = dict(per_device_train_batch_size=3, dataloader_num_workers=0, report_to=[])
"""


def test_packed_samples_have_the_distillation_loss_and_the_gradients_of_padded_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny("gemma3n", "student")
    write_tiny("gemma3n", "teacher", seed=1)
    answers = ["no", "a small effusion on the left", "the heart is large", "5 mm"]
    rows = [{"question": "Why? " * (1 + number), "answer": answer} for number, answer in enumerate(answers)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def update(packing):
        """Return the pieces of an update, its loss and its gradients."""
        Path("run.py").write_text(WORDS.format(checkout=CHECKOUT, packing=packing))
        config, hardware = prepare_args("run.py")
        torch.manual_seed(0)
        bundle = load_pretrained(config.model_args, hardware)
        for name, parameter in bundle.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        teacher, splits = load_teacher(config, hardware, bundle), open_splits(config)
        learner = build_learner(config, bundle, teacher)
        data = prepare_data(config, hardware, bundle, training_encoder(bundle, teacher, None), splits)
        pieces = data.collate([data.train_dataset[index] for index in range(4)]).pieces
        counts = [learner.counts(piece.targets) for piece in pieces]
        whole = {name: sum(count[name] for count in counts) for name in counts[0]}
        loss = sum(learner(p.student, p.targets, p.teacher, counts=whole)["loss"] for p in pieces)
        loss.backward()
        return pieces, float(loss.detach()), [p.grad for p in learner.parameters() if p.requires_grad]

    (_, loss, gradients), (pieces, packed_loss, packed_gradients) = update(False), update(True)
    assert sorted(piece.samples for piece in pieces)[-1] > 1 and all(LAYOUT in piece.student for piece in pieces)
    assert packed_loss == pytest.approx(loss, rel=1e-6)
    assert max(float((a - b).norm() / b.norm()) for a, b in zip(packed_gradients, gradients, strict=True)) < 2e-5
