"""Rules for `training_args` and for engines that shard weights."""

from __future__ import annotations

import importlib.util
import json

import pytest

from mllm.config.hardware import Hardware
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.config.rules.sharding import engine_of
from mllm.errors import ConfigError

CPU = Hardware("cpu", "x86_64", None, 0, 0, 8 << 30, 2)
PRIVATE = "privacy_args = dict(target_epsilon=3.0, target_delta=1e-6)\n"


@pytest.fixture
def refuse(write, bases):
    """Return the error message of a config."""

    def sentence(lines: str) -> str:
        with pytest.raises(ConfigError) as excinfo:
            apply_rules(read_config(write(bases + lines + "\n")), CPU)
        return str(excinfo.value)

    return sentence


@pytest.mark.parametrize(
    "setting", ["push_to_hub=True", "hub_model_id='me/it'", "hub_strategy='all_checkpoints'", "hub_token='x'"]
)
def test_uploads_by_trainer_are_refused(refuse, setting):
    assert "mllm push" in refuse(f"training_args = dict({setting})")


@pytest.mark.parametrize(
    ("setting", "fragment"),
    [
        ("resume_from_checkpoint='runs/x'", "--resume"),
        ("save_only_model=True", "needs the optimizer"),
        ("save_strategy='best'", "load_best_model_at_end"),
        ("optim='galore_adamw'", "full weights"),
        ("optim='schedule_free_adamw'", "weights of training"),
        ("report_to='all'", "report_to names 'all'"),
        ("report_to=['clearml']", "report_to names 'clearml'"),
        ("report_to=None", "write report_to=[]"),
        (
            "load_best_model_at_end=True, eval_strategy='no', save_strategy='no'",
            "validation and eval_strategy and save_str",
        ),
        ("load_best_model_at_end=True, eval_strategy='no', save_strategy='steps'", "validation and eval_strategy: set"),
        ("fsdp='hybrid_shard'", "write fsdp=True"),
        ("fsdp_config=dict(version=2)", "fsdp_config needs fsdp=True"),
        ("fsdp=True, fsdp_config=dict(transformer_layer_cls_to_warp=['A'])", "'transformer_layer_cls_to_wrap'?"),
        ("fsdp=True, fsdp_config=dict(fsdp_version=1)", "version=1 is not supported: write 2"),
        ("fsdp=True, fsdp_config='absent.json'", "cannot be read as a JSON file"),
        ("fsdp=True, deepspeed=dict(zero_optimization=dict(stage=2))", "exclude each other"),
        ("deepspeed='absent.json'", "cannot be read as a JSON file"),
        ("trackio_space_id='me/it'", "Hugging Face Hub"),
    ],
)
def test_arguments_that_would_fail_later_are_refused(refuse, setting, fragment):
    sentence = refuse(f"training_args = dict({setting})")
    assert sentence.startswith("run.py:2: ") and fragment in sentence


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (PRIVATE, "privacy_args, which clips the gradients of physical_batch_size samples at a time"),
        ("training_args = dict(deepspeed='zero2.json')", "training_args.deepspeed, which keeps the gradients"),
        ("training_args = dict(fsdp=True)", "training_args.fsdp, which exchanges weights and gradients"),
    ],
)
def test_micro_batches_that_fit_are_not_found_where_a_failed_pass_cannot_be_taken_back(refuse, lines, reason):
    sentence = refuse(f'data_args = dict(tokens_per_micro_batch="auto")\n{lines}')
    assert sentence.startswith("run.py:2: tokens_per_micro_batch='auto' is not possible with ") and reason in sentence


@pytest.mark.parametrize("value", ["'automatic'", "0", "True"])
def test_other_sizes_of_micro_batches_are_refused(refuse, value):
    assert "tokens_per_micro_batch must be" in refuse(f"data_args = dict(tokens_per_micro_batch={value})")


@pytest.fixture
def zero_3(tmp_path):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": "3"}}))
    return path


@pytest.fixture
def deepspeed_installed(monkeypatch):
    """Let the rules find the package deepspeed, which they do not import."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "deepspeed" or find_spec(name))


def test_an_engine_without_its_package_is_refused(refuse, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find_spec(name))
    for stage in (2, 3):
        sentence = refuse(f"training_args = dict(deepspeed=dict(zero_optimization=dict(stage={stage})))")
        assert sentence.startswith("run.py:2: ") and "pip install -e '.[deepspeed]'" in sentence


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (
            "optimizer=dict(type='AdamW')",
            "deepspeed.optimizer is not supported: remove it",
        ),
        ("bf16=dict(enabled=True)", "training_args.bf16"),
        ("train_batch_size=8", "training_args.per_device_train_batch_size"),
        ("gradient_accumulation_steps=4", "training_args.gradient_accumulation_steps"),
        ("zero_optimization=dict(stage=4)", "must be 1, 2 or 3"),
        ("zero_optimization=dict(stage=3, offload_param=dict(device='cpu'))", "not tested with stage 3"),
    ],
)
def test_settings_of_deepspeed_that_cannot_work_are_refused(refuse, deepspeed_installed, options, fragment):
    assert fragment in refuse(f"training_args = dict(deepspeed=dict({options}))")


def test_quantized_weights_and_best_checkpoints_are_refused_with_zero_3(refuse, deepspeed_installed):
    engine = "deepspeed=dict(zero_optimization=dict(stage='3'))"
    lines = f"training_args = dict({engine})\nmodel_args = dict(load_in_4bit=True)"
    assert "cannot divide quantized weights, and model_args.load_in_4bit is set" in refuse(lines)
    best = "load_best_model_at_end=True, eval_strategy='steps', save_strategy='steps'"
    lines = f"training_args = dict({engine}, {best})\ndata_args = dict(validation=dict(type='DummyDataset'))"
    assert "cannot load a checkpoint after it wrote one" in refuse(lines)


def test_engines_and_settings_that_other_keys_fill_are_accepted_on_one_process(write, bases, deepspeed_installed):
    """Commands for data and evaluations read the config of a run of several processes. They refused FSDP."""
    for engine, name in (
        ("fsdp=True, fsdp_config=dict(fsdp_transformer_layer_cls_to_wrap=['Gemma3DecoderLayer'])", "fsdp2"),
        ("fsdp='full_shard auto_wrap'", "fsdp2"),
        (
            "deepspeed=dict(zero_optimization=dict(stage='3'), bf16=dict(enabled='auto'), gradient_clipping='auto')",
            "zero3",
        ),
    ):
        config, _ = apply_rules(read_config(write(bases + f"training_args = dict({engine})\n")), CPU)
        assert engine_of(config) == name


@pytest.mark.parametrize(
    ("variables", "fragment"),
    [
        (dict(MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="True"), "accelerate launch --cpu starts one process"),
        (dict(SLURM_STEP_NUM_TASKS="8", SLURM_PROCID="3"), "srun started 8 tasks that are not connected"),
    ],
)
def test_processes_that_would_train_alone_are_refused(refuse, monkeypatch, variables, fragment):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert fragment in refuse("training_args = dict()")


def test_more_processes_than_gpus_are_refused(write, bases, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    two = Hardware("cuda", "H100", (9, 0), 80 << 30, 2, 8 << 30, 2)
    with pytest.raises(ConfigError, match="8 processes were started on a machine with 2 GPUs"):
        apply_rules(read_config(write(bases)), two)


@pytest.fixture
def launch(monkeypatch):
    """A function that sets the environment variables of `accelerate launch` with the given options."""
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    def set_variables(*options: str) -> None:
        args = launch_command_parser().parse_args([*options, "--num_processes=2", "finetune.py"])
        for name in ("num_machines", "num_cpu_threads_per_process"):
            setattr(args, name, 1)  # `accelerate launch` replaces None by 1
        args.deepspeed_fields_from_accelerate_config = ""
        args.dynamo_backend, args.mixed_precision = args.dynamo_backend or "no", args.mixed_precision or "no"
        variables = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
        for name, value in variables.items():
            if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_")):
                monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        (["--use_fsdp"], "FSDP"),
        (["--use_fsdp", "--fsdp_version=2"], "FSDP"),
        (["--use_megatron_lm"], "Megatron-LM"),
        (["--use_parallelism_config", "--parallelism_config_tp_size=2"], "tensor, context"),
        (["--use_deepspeed", "--zero_stage=3"], "ZeRO stage 3"),
        (["--use_deepspeed", "--deepspeed_config_file={zero_3}"], "ZeRO stage 3"),
    ],
)
def test_engines_chosen_by_accelerate_launch_are_refused(refuse, launch, zero_3, options, engine):
    launch(*(option.format(zero_3=zero_3) for option in options))
    sentence = refuse("training_args = dict()")
    assert engine in sentence and "only supported through training_args" in sentence


def test_autocast_chosen_by_accelerate_launch_must_be_that_of_the_config(refuse, launch, write, bases):
    launch("--mixed_precision=fp16")
    assert "ACCELERATE_MIXED_PRECISION is fp16" in refuse("training_args = dict(fp16=True)")
    launch("--mixed_precision=bf16")
    assert "--mixed_precision no" in refuse("training_args = dict()")
    apply_rules(read_config(write(bases + "training_args = dict(bf16=True)\nhardware = dict(bf16=True)\n")), CPU)
    launch()
    apply_rules(read_config(write(bases)), CPU)


def test_trackers_of_a_private_run_write_to_the_run_folder_only(refuse):
    assert "cannot be used with privacy_args" in refuse(PRIVATE + "training_args = dict(report_to=['wandb'])")


def test_a_tracker_that_would_upload_checkpoints_is_refused(refuse, monkeypatch):
    monkeypatch.setenv("WANDB_LOG_MODEL", "checkpoint")
    assert "WANDB_LOG_MODEL" in refuse("training_args = dict(report_to='wandb')")


@pytest.mark.parametrize(
    ("setting", "fragment"),
    [
        ("metric_for_best_model='accuracy'", "choose from loss, next_token"),
        ("greater_is_better=True", "would select the worst checkpoint"),
    ],
)
def test_the_metric_of_the_best_checkpoint_is_looked_up(refuse, setting, fragment):
    assert fragment in refuse(f"training_args = dict({setting})")


def test_kernels_of_liger_are_refused_without_a_gpu_or_the_package(refuse, write, bases, monkeypatch):
    setting = "training_args = dict(use_liger_kernel=True)\n"
    assert "use_liger_kernel=True needs a GPU, for which its kernels are written in Triton: remove it" in refuse(
        setting
    )
    gpu = Hardware("cuda", "some card", (8, 0), 24 << 30, 1, 8 << 30, 2)
    found, find = None, importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "liger_kernel" else find(name))
    with pytest.raises(ConfigError, match=r"run\.py:\d+: .* the package liger-kernel: pip install -e '\.\[liger\]'"):
        apply_rules(read_config(write(bases + setting)), gpu)
    found = find("json")
    assert apply_rules(read_config(write(bases + setting)), gpu)[0].training_args["use_liger_kernel"]
