"""Tests of `mllm.engine.builder`: equal updates for every division of a batch, checkpointing, and refused configs."""

import pytest
import torch
from torch.autograd.graph import save_on_cpu
from transformers import TrainingArguments, modeling_utils

from mllm.config.hardware import Hardware
from mllm.config.schema import DataArgs, ModelArgs, RunConfig
from mllm.config.training_args import fill_defaults
from mllm.dataset.loading.collator import EncodedDataset, LogicalCollator
from mllm.dataset.loading.sampler import LogicalBatchSampler
from mllm.engine.builder import (
    build_learner,
    build_multimodal_trainer,
    find_builder,
    logical_batch_size,
    memory_advice,
    prepare_trainer,
    training_arguments,
)
from mllm.engine.training_data import TrainingData
from mllm.errors import ConfigError
from mllm.registry import TRAINERS

CPU = Hardware("cpu", "CPU", None, 0, 0, 2**33, 2)


def settings(**options):
    """Return `training_args` without the keys of `StoppingArgs`, which the builder removes."""
    filled = fill_defaults(options)
    return {key: value for key, value in filled.items() if not key.startswith("early_stopping")}


@pytest.fixture
def build(make_bundle, rows, tmp_path):
    """A function that builds learner and trainer as the pipeline does; options are `training_args`."""

    def make(model=None, objectives=None, dropout=0.0, **options):
        config = RunConfig(
            model_args=ModelArgs("medgemma", "tiny", **(model or {})),
            data_args=DataArgs(),
            training_args=fill_defaults(
                dict(report_to=[], disable_tqdm=True, save_strategy="no", max_steps=2, seed=0) | options
            ),
            objectives=objectives or {"next_token": {"type": "NextToken"}},
            name="test",
            path=tmp_path,
        )
        bundle = make_bundle(dropout)
        encoder = bundle.encoder
        size = logical_batch_size(config.training_args)
        return prepare_trainer(
            config,
            CPU,
            build_learner(config, bundle),
            tmp_path / "run",
            TrainingData(
                train_dataset=EncodedDataset(rows(12), encoder.encode),
                train_sampler=LogicalBatchSampler(12, size, seed=3),
                collate=LogicalCollator(encoder.pad, samples_per_piece=options.get("per_device_train_batch_size", 8)),
            ),
        )

    return make


@pytest.mark.parametrize(("size", "steps"), [(2, 2), (1, 4)])
def test_the_update_depends_on_batch_size_times_accumulation_only(build, trained, size, steps):
    options = dict(optim="sgd", learning_rate=1e-2, lr_scheduler_type="constant")
    whole = build(per_device_train_batch_size=4, gradient_accumulation_steps=1, **options)
    cut = build(per_device_train_batch_size=size, gradient_accumulation_steps=steps, **options)
    start = trained(whole)
    whole.train()
    cut.train()
    assert cut.state.global_step == whole.state.global_step == 2
    actual = trained(cut)
    for name, value in trained(whole).items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-6, msg=name)
        assert not torch.equal(start[name], value), f"{name} did not move"


def test_checkpointing_leaves_a_frozen_tower_out_of_the_backward(build):
    trainer = build(per_device_train_batch_size=4, gradient_checkpointing=True)
    pretrained = trainer.learner.student.pretrained
    for name, parameter in pretrained.named_parameters():
        if "vision_tower" in name:
            parameter.requires_grad_(False)
    calls = []
    for module in pretrained.modules():
        if type(module).__name__ == "SiglipEncoderLayer":
            module.mlp.register_forward_hook(lambda module, inputs, output: calls.append(output.requires_grad))
    batch = trainer.first_batch()
    layers = pretrained.config.vision_config.num_hidden_layers
    trainer.training_step(trainer.learner, batch, trainer._global_counts(batch, torch.device("cpu")))
    assert calls == [False] * (layers * len(batch.pieces)), "the tower must be computed once and without a graph"


@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_recomputes_layers_with_equal_gradients(build, key):
    results, calls = [], []
    for on in (False, True):
        trainer = build(dropout=0.2, per_device_train_batch_size=4, **{key: on})
        layer = trainer.learner.student.pretrained.model.language_model.layers[0].mlp
        layer.register_forward_pre_hook(lambda module, inputs: calls.append(1))
        calls.clear()
        batch = trainer.first_batch()
        counts = trainer._global_counts(batch, torch.device("cpu"))
        torch.manual_seed(5)
        loss = trainer.training_step(trainer.learner, batch, counts)
        gradients = {name: p.grad for name, p in trainer.learner.named_parameters() if p.grad is not None}
        results.append((loss, gradients, len(calls) / len(batch.pieces)))
    (loss, plain, once), (again, checkpointed, twice) = results
    assert (once, twice) == (1, 2), "the layer must be computed a second time in the backward"
    assert any("vision_tower" in name for name in plain)
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=0)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
        assert gradient.any(), f"{name} has a gradient of zeros"


def test_offloaded_activations_give_equal_gradients(build, monkeypatch):
    offloaded: list[tuple[int, ...]] = []

    class Recorded(save_on_cpu):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: (offloaded.append(tuple(tensor.shape)), pack(tensor))[1]

    monkeypatch.setattr(modeling_utils, "save_on_cpu", Recorded)
    results = []
    for offload in (False, True):
        options = dict(gradient_checkpointing=True, gradient_checkpointing_kwargs=dict(offload=offload))
        trainer = build(dropout=0.2, per_device_train_batch_size=4, **options)
        batch = trainer.first_batch()
        counts = trainer._global_counts(batch, torch.device("cpu"))
        offloaded.clear()
        torch.manual_seed(5)
        loss = trainer.training_step(trainer.learner, batch, counts)
        gradients = {name: p.grad for name, p in trainer.learner.named_parameters() if p.grad is not None}
        results.append((loss, gradients, list(offloaded)))
    (loss, gradients, none), (again, others, moved) = results
    width = trainer.learner.student.pretrained.config.text_config.hidden_size
    layers = len(trainer.learner.student.pretrained.model.language_model.layers)
    assert not none and sum(shape[-1] == width for shape in moved) >= layers * len(batch.pieces)
    assert torch.equal(loss, again) and gradients.keys() == others.keys()
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


def test_every_second_layer_may_be_checkpointed(build):
    trainer = build(gradient_checkpointing=True, gradient_checkpointing_kwargs=dict(every_n_layers=2))
    layers = trainer.learner.student.pretrained.model.language_model.layers
    assert [layer.gradient_checkpointing for layer in layers[:3]] in ([True, False, True], [False, True, False])


def test_data_parallel_is_off_with_several_gpus(build, monkeypatch, tmp_path):
    learner = build().learner
    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(lambda self: setattr(self, "_n_gpu", 4)))
    arguments = training_arguments(settings(report_to=[]), CPU, tmp_path, learner, evaluates=False)
    assert arguments.n_gpu == 1


def test_unused_parameters_are_searched_unless_only_the_language_tower_trains(build, tmp_path):
    learner = build().learner
    make = lambda: training_arguments(settings(report_to=[]), CPU, tmp_path, learner, evaluates=False)  # noqa: E731
    assert make().ddp_find_unused_parameters
    learner.student.towers = {**learner.student.towers, "projector": "model.multi_modal_projector"}
    for name, parameter in learner.named_parameters():
        parameter.requires_grad_("lora" in name and "vision_tower" not in name)
    assert not make().ddp_find_unused_parameters
    projector = learner.student.pretrained.get_submodule("model.multi_modal_projector").requires_grad_(True)
    assert make().ddp_find_unused_parameters
    projector.requires_grad_(False)
    learner.student.heads["box"] = torch.nn.Linear(2, 2)
    assert not make().ddp_find_unused_parameters, "heads have a gradient in every piece"
    learner.student.fusion = torch.nn.Linear(2, 2)
    assert make().ddp_find_unused_parameters, "a piece without images does not reach the mixture of layers"


@pytest.mark.parametrize("kind", ["medgemma", "image-text", "shikra", "perceptionGPT"])
def test_every_type_that_reads_images_has_the_same_trainer(kind):
    assert find_builder(kind) is build_multimodal_trainer


def test_a_family_can_bring_its_own_trainer(monkeypatch):
    monkeypatch.setitem(TRAINERS.module_dict, "medgemma", dict)
    assert find_builder("medgemma") is dict and find_builder("shikra") is build_multimodal_trainer


@pytest.mark.parametrize("name", ["loss", "a.b"])
def test_an_invalid_name_of_an_objective_is_refused(build, name):
    with pytest.raises(ConfigError, match=f"objectives: '{name}' cannot be the name of an objective"):
        build(objectives={name: {"type": "NextToken"}})


def test_a_wrong_option_of_an_objective_is_named(build):
    with pytest.raises(ConfigError, match="unknown key 'wieght' in objectives.next_token"):
        build(objectives={"next_token": {"type": "NextToken", "wieght": 2}})


def test_evaluation_without_a_validation_split_is_off_and_logged_once(build, caplog, tmp_path):
    """A run builds the arguments before the model is loaded, and again for its trainer."""
    with caplog.at_level("INFO", logger="mllm"):
        early = training_arguments(settings(eval_strategy="epoch"), CPU, tmp_path, None, evaluates=False)
        trainer = build(eval_strategy="epoch")
    assert early.eval_strategy == trainer.args.eval_strategy == "no"
    assert caplog.text.count("no validation split") == 1


def test_memory_advice_lists_the_settings_of_the_config(build, tmp_path):
    config = RunConfig(
        ModelArgs("medgemma", "tiny", load_in_4bit=True, lora_r=8, max_length=512, image_token_len=128),
        DataArgs(tokens_per_micro_batch=4096),
        fill_defaults(dict(per_device_train_batch_size=4, gradient_checkpointing=True)),
        {},
        "test",
        tmp_path,
    )
    assert memory_advice(config) == (
        "Lower, in this order: data_args.tokens_per_micro_batch (now 4096), then "
        "model_args.max_length (now 512), then model_args.image_token_len (now 128), then "
        "model_args.image_size (now that of the checkpoint), then model_args.lora_r (now 8)"
    )


@pytest.mark.parametrize("kind, last", [("gemma3n-student", []), ("medsiglip", ["model_args.load_in_4bit"])])
def test_memory_advice_for_a_vision_model_omits_refused_settings(kind, last, tmp_path):
    args = ModelArgs(kind, "tiny", part="vision", lora_r=8)
    config = RunConfig(args, DataArgs(), fill_defaults({"per_device_train_batch_size": 4}), {}, "test", tmp_path)
    named = [step.split(" (")[0] for step in memory_advice(config).split(": ", 1)[1].split(", then ")]
    training = ["training_args.per_device_train_batch_size", "training_args.gradient_checkpointing"]
    assert named == [*training, *last, "model_args.lora_r"]


def test_layers_of_fsdp_that_the_model_does_not_have_are_refused(build):
    """accelerate ended in a traceback after the checks before the first update."""
    wrapped = dict(transformer_layer_cls_to_wrap=["Gemma3DecoderLayer", "SiglipEncoderLayr"])
    with pytest.raises(ConfigError, match="no layers of the class 'SiglipEncoderLayr'.*: did you mean 'SiglipEncoderL"):
        build(fsdp=True, fsdp_config=wrapped)
