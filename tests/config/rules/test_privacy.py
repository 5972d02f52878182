"""Settings that would break the privacy guarantee are refused with their origin, before weights are loaded."""

from __future__ import annotations

import pytest

from mllm.config.hardware import Hardware
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.config.rules.privacy import refuse_large_delta
from mllm.errors import ConfigError

CPU = Hardware("cpu", "x86_64", None, 0, 0, 8 << 30, 2)
A10 = Hardware("cuda", "NVIDIA A10G", (8, 6), 24 << 30, 1, 32 << 30, 4)
PRIVATE = "privacy_args = dict(target_epsilon=3.0, target_delta=1e-5)\n"
LINEAR = "but with privacy_args only LoRA on Linear layers and linear heads can be trained"


@pytest.fixture
def run(write, bases):
    def apply(lines: str, hardware: Hardware = A10):
        return apply_rules(read_config(write(bases + lines)), hardware)[0]

    return apply


def refusal(run, lines: str, hardware: Hardware = A10) -> str:
    with pytest.raises(ConfigError) as excinfo:
        run(lines, hardware)
    return str(excinfo.value)


def test_the_section_is_optional_and_complete(run):
    assert run("").privacy_args is None and "privacy_args" not in run("").as_dict()
    privacy = run(PRIVATE).privacy_args
    assert (privacy.clip_norm, privacy.unit, privacy.accountant) == (1.0, "sample", "prv")
    assert run(PRIVATE + "privacy_args = None\n").privacy_args is None
    assert run("privacy_args = dict(noise_multiplier=1.1, target_delta=1e-6)\n").privacy_args.target_epsilon is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("target_epsilon=3.0", "run.py:2: privacy_args needs the key 'target_delta'"),
        ("target_delta=0", "run.py:2: privacy_args.target_delta must be greater than 0, not 0"),
        ("target_delta=1.0", "run.py:2: privacy_args.target_delta must be less than 1, not 1.0"),
        ("target_delta=1e-5, target_epsilon=0", "run.py:2: privacy_args.target_epsilon must be greater than 0, not 0"),
        ("target_delta=1e-5, unit='person'", "run.py:2: privacy_args.unit must be 'sample' or 'patient', not 'person'"),
        (
            "target_delta=1e-5, epsilon=3.0",
            "run.py:2: unknown key 'epsilon' in privacy_args: did you mean 'target_epsilon'?",
        ),
        (
            "target_delta=1e-5",
            "run.py:2: privacy_args needs either target_epsilon, from which the noise follows, or noise_multiplier, "
            "and has neither: set target_epsilon=3.0, for example",
        ),
        (
            "target_delta=1e-5, target_epsilon=3.0,\n    noise_multiplier=1.0",
            "run.py:3: privacy_args needs either target_epsilon, from which the noise follows, or noise_multiplier, "
            "and has both: remove one",
        ),
        (
            "target_delta=1e-5, target_epsilon=3.0,\n    max_records_per_patient=4",
            "run.py:3: max_records_per_patient=4 has no effect with unit='sample': set unit='patient', or remove it",
        ),
        (
            "target_delta=1e-5, target_epsilon=3.0, secure_mode=True,\n    test_noise_seed=0",
            "run.py:3: test_noise_seed makes the noise reproducible, and secure_mode=True makes it unpredictable: "
            "remove one of them",
        ),
    ],
)
def test_contradicting_options_are_refused(run, arguments: str, expected: str):
    assert refusal(run, f"privacy_args = dict({arguments})\n") == expected


@pytest.mark.parametrize("hardware", [A10, CPU], ids=["card", "cpu"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "fp16=True",
            "fp16=True cannot be used with privacy_args, because a gradient that overflows in half precision has no "
            "norm to clip: set bf16=True, or train in fp32",
        ),
        (
            "gradient_accumulation_steps=8, per_device_train_batch_size=4",
            "gradient_accumulation_steps=8 cannot be used with privacy_args, because every sampled batch is one "
            "update: set it to 1, per_device_train_batch_size to the 32 samples of an update, and "
            "privacy_args.physical_batch_size to what fits in memory",
        ),
        (
            "max_grad_norm=0.5",
            "max_grad_norm=0.5 cannot be used with privacy_args, because the gradient of every unit is already "
            "clipped to privacy_args.clip_norm: set max_grad_norm=0",
        ),
        (
            "fsdp='full_shard'",
            "fsdp cannot be used with privacy_args, because the gradient of a unit is clipped as a whole, and each "
            "process would hold only a part of it: remove it",
        ),
        (
            "deepspeed='zero3.json'",
            "deepspeed cannot be used with privacy_args, because the gradient of a unit is clipped as a whole, and "
            "each process would hold only a part of it: remove it",
        ),
        (
            "save_strategy='no'",
            "save_strategy='no' cannot be used with privacy_args, because an interrupted run has spent privacy and "
            "could not be resumed: set it to 'steps'",
        ),
    ],
)
def test_options_that_poisson_sampling_replaces_are_refused(run, arguments: str, expected: str, hardware: Hardware):
    lines = f"training_args = dict({arguments})\n"
    assert refusal(run, PRIVATE + lines, hardware) == f"run.py:3: {expected}"
    if not arguments.startswith(("fsdp", "deepspeed")):  # refused without privacy_args, too
        run(lines, hardware)
    run(PRIVATE + "training_args = dict(max_grad_norm=0, gradient_accumulation_steps=1)\n", hardware)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ("load_best_model_at_end=True", "load_best_model_at_end=True"),
        ("save_strategy='best'", "save_strategy='best'"),
        ("lr_scheduler_type='reduce_lr_on_plateau'", "lr_scheduler_type='reduce_lr_on_plateau'"),
        ("early_stopping_patience=3, eval_strategy='epoch'", "early_stopping_patience=3"),
    ],
)
def test_selection_by_private_validation_is_refused(run, arguments: str, option: str):
    lines = f"training_args = dict({arguments})\ndata_args = dict(validation=dict(type='Phantoms', size=2))\n"
    assert refusal(run, PRIVATE + lines) == (
        f"run.py:3: {option} selects by the validation loss, which is a query of private data that the accountant "
        "does not count: remove it, or set privacy_args.public_validation=True if the validation split is public"
    )
    if "best'" not in arguments:  # refused without privacy_args, too
        run(PRIVATE + lines + "privacy_args.update(public_validation=True)\n")


def test_checkpoints_by_validation_loss_need_public_data_and_a_loss(run):
    with_checkpoints = PRIVATE + "privacy_args.update(checkpoint_below=[2.0, 1.5])\n"
    assert refusal(run, with_checkpoints) == (
        "run.py:3: checkpoint_below selects by the validation loss, which is a query of private data that the "
        "accountant does not count: remove it, or set privacy_args.public_validation=True if the validation split is "
        "public"
    )
    public = with_checkpoints + "privacy_args.update(public_validation=True)\n"
    missing = (
        "run.py:3: checkpoint_below needs a validation loss, and there is none: set data_args.validation, and "
        "training_args.eval_strategy to 'steps' or 'epoch'"
    )
    measured = "training_args = dict(eval_strategy='epoch')\n"
    split = "data_args = dict(validation=dict(type='Phantoms', size=2))\n"
    assert refusal(run, public + measured) == refusal(run, public + split) == missing
    assert run(public + measured + split).privacy_args.checkpoint_below == [2.0, 1.5]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "heads=dict(box=dict(type='BoxHead'))",
            "the head 'box' (BoxHead) cannot be trained: it trains norms and an",
        ),
        ("heads=dict(mask=dict(type='MaskHead'))", "the head 'mask' (MaskHead) cannot be trained: it trains conv"),
        (
            "box_format=dict(type='location_tokens')",
            f"box_format 'location_tokens' adds tokens whose embeddings train, {LINEAR}: use "
            "dict(type='normalized_text')",
        ),
        ("box_format=dict(type='perception_token')", "box_format 'perception_token' adds tokens whose embeddings"),
        (
            "fuse_vision_layers=True",
            f"fuse_vision_layers=True trains the weights of a mixture of layers, {LINEAR}: set it to False",
        ),
        ("use_dora=True", f"use_dora=True trains magnitudes of weights, {LINEAR}: set it to False"),
        (
            "load_in_8bit=True",
            "load_in_8bit=True cannot be used with privacy_args, because LLM.int8 selects outlier columns from all "
            "samples of a batch, so samples influence each other: set load_in_4bit=True, or neither",
        ),
    ],
)
def test_parts_without_per_sample_gradients_are_refused(run, arguments: str, expected: str):
    lines = f"model_args = dict(type='image-text', {arguments})\n"
    sentence = refusal(run, PRIVATE + lines)
    assert sentence.startswith(f"run.py:3: {expected}")
    run(lines)


VISION_ARGS = (
    "part='vision', model_name_or_path='google/medsiglip-448', heads=dict(measures=dict(type='RegressionHead'{}))"
)
MEASURES = "objectives = dict(_delete_=True, measures=dict(type='MeasureLoss'))\n"


def vision_config(
    kind: str, more: str = "", scale: str = ", scale=dict(EF=(55, 12), EDV=(120, 45), ESV=(55, 35))"
) -> str:
    return f"model_args = dict(type='{kind}', {VISION_ARGS.format(scale)}{more})\n{MEASURES}"


def test_a_private_regression_head_needs_a_scale(run):
    assert refusal(run, PRIVATE + vision_config("medsiglip", scale="")) == (
        "run.py:3: a RegressionHead takes mean and standard deviation of its measures from the training split, which "
        "is a query of private data that the accountant does not count: set published values, such as "
        "scale=dict(EF=(55.0, 12.0), ...)"
    )
    one = "model_args['heads']['measures']['measures'] = ['LVM']\n"
    assert refusal(run, PRIVATE + vision_config("medsiglip", scale="") + one).endswith(
        "such as scale=dict(LVM=(55.0, 12.0))"
    )
    run(vision_config("medsiglip", scale=""))
    assert run(PRIVATE + vision_config("medsiglip")).privacy_args is not None


def test_convolutions_and_fully_trained_towers_are_refused(run):
    assert refusal(run, PRIVATE + vision_config("gemma3n-student").replace("medsiglip-448", "gemma-3n-E4B-it")) == (
        "run.py:3: type='gemma3n-student' trains the convolutions of Gemma 3n's vision tower, "
        f"{LINEAR}: use a model whose vision tower is a SigLIP, such as google/medsiglip-448"
    )
    assert refusal(run, PRIVATE + vision_config("medsiglip", ", train_vision=True, lora_r=None")) == (
        f"run.py:3: train_vision=True trains embeddings and convolutions, {LINEAR}: set it to False, and lora_r to a "
        "rank"
    )


def test_distillation_is_refused(run):
    teacher = (
        "objectives.update(match=dict(type='FeatureMatch'))\n"
        "distill_args = dict(teacher=dict(type='medsiglip', model_name_or_path='google/medsiglip-448'))\n"
    )
    assert refusal(run, PRIVATE + vision_config("medsiglip") + teacher) == (
        f"run.py:6: distill_args cannot be used with privacy_args: its projectors train on feature maps, {LINEAR}: "
        "remove it, or distill on public data without privacy_args"
    )
    run(vision_config("medsiglip") + teacher)


def test_packing_is_possible(run):
    model = "model_args = dict(type='causal-lm', model_name_or_path='google/vaultgemma-1b')\n"
    run(PRIVATE + model + "data_args = dict(packing=True)\n")


def test_the_default_heads_of_perception_gpt_are_refused(run, write):
    lines = "model_args = dict(type='perceptionGPT', model_name_or_path='llava-hf/llava-1.5-7b-hf')\n"
    assert LINEAR in refusal(run, PRIVATE + lines)


def test_datasets_that_draw_with_replacement_are_refused_at_any_depth(run):
    mixed = "dict(type='MixedDataset', datasets=[dict(type='Phantoms')], weights=[1.0])"
    for train in (mixed, f"dict(type='Joined', datasets=[dict(type='Phantoms'), {mixed}])"):
        lines = f"data_args = dict(train=dict(_delete_=True, **{train}))\n"
        assert refusal(run, PRIVATE + lines) == (
            "run.py:3: MixedDataset draws rows with replacement, so the sampling rate of a row would differ from the "
            "rate of the accountant: use ConcatDataset"
        )
    run(PRIVATE + f"data_args = dict(validation={mixed})\n")


@pytest.mark.parametrize("family", ["gemma-3n-E4B-it", "vaultgemma-1b"])
def test_checkpointing_is_never_reentrant(run, family: str):
    """Per-sample gradients are computed inside the layers, not in hooks, so Gemma 3n needs no exception."""
    lines = (
        f"model_args = dict(type='causal-lm', model_name_or_path='google/{family}')\n"
        "training_args = dict(gradient_checkpointing=True, gradient_checkpointing_kwargs=dict(use_reentrant=True))\n"
    )
    args = run(PRIVATE + lines).training_args
    assert args["gradient_checkpointing"] and args["gradient_checkpointing_kwargs"] == {"use_reentrant": False}


def test_delta_must_be_below_one_in_n(run):
    config = run(PRIVATE)
    refuse_large_delta(config, 99_999)
    with pytest.raises(ConfigError) as excinfo:
        refuse_large_delta(config, 100_000)
    assert str(excinfo.value) == (
        "run.py:2: target_delta=1e-05 is too large for N=100000 samples, because it must be below 1/N = 1e-05: set it "
        "to 1e-06, for example"
    )
    patients = run("privacy_args = dict(target_epsilon=1, target_delta=0.01, unit='patient')\n")
    with pytest.raises(ConfigError, match="for N=300 patients, .* below 1/N = 0.00333: set it to 0.0003, for example"):
        refuse_large_delta(patients, 300)
    refuse_large_delta(run(""), 10)
