from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

from mllm.config.hardware import Hardware
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.config.training_args import changed_values
from mllm.config.training_support import refusal
from mllm.errors import ConfigError
from mllm.models.medgemma.rules import IMAGE_TOKENS, token_grid

CPU = Hardware("cpu", "x86_64", None, 0, 0, 8 << 30, 2)
T4 = Hardware("cuda", "Tesla T4", (7, 5), 15 << 30, 1, 32 << 30, 4)
A10 = replace(T4, name="NVIDIA A10G", capability=(8, 6))


@pytest.fixture
def run(write, bases):
    """A function that applies the rules to the three bases with additional lines."""

    def apply(lines: str, hardware: Hardware = A10):
        return apply_rules(read_config(write(bases + lines + "\n")), hardware)

    return apply


@pytest.fixture
def sentence(run):
    def refuse(lines: str, hardware: Hardware = A10) -> str:
        with pytest.raises(ConfigError) as excinfo:
            run(lines, hardware)
        return str(excinfo.value)

    return refuse


@pytest.fixture
def checkpoint(write, tmp_path):
    """A function that writes a checkpoint's config.json."""

    def write_config(model_type: str, **values) -> None:
        folder = tmp_path / "ckpt" / "here"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, **values}))

    return write_config


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "training_args = dict(bf16=True)",
            "run.py:2: bf16=True needs compute capability 8.0 or newer and Tesla T4 has compute capability 7.5: set "
            "bf16=False and fp16=True in training_args",
        ),
        (
            "training_args = dict(bf16_full_eval=True)",
            "run.py:2: bf16_full_eval=True needs compute capability 8.0 or newer and Tesla T4 has compute capability "
            "7.5: set bf16_full_eval=False in training_args",
        ),
        (
            "training_args = dict(fp16=True,\n    tf32=True)",
            "run.py:3: tf32=True needs compute capability 8.0 or newer and Tesla T4 has compute capability 7.5: set "
            "tf32=False in training_args",
        ),
    ],
)
def test_bf16_and_tf32_need_ampere(sentence, run, lines, expected, monkeypatch):
    # PyTorch returns True on a T4, which emulates bf16.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert sentence(lines, T4) == expected
    run(lines, A10)


def test_fp16_with_bf16(sentence):
    assert sentence("training_args = dict(\n    fp16=True,\n    bf16=True)") == (
        "run.py:3: fp16=True and bf16=True (run.py:4) exclude each other: set one of them to False"
    )


def test_fp16_full_eval(sentence):
    assert sentence("training_args = dict(fp16_full_eval=True)") == (
        "run.py:2: fp16_full_eval=True casts the whole model to fp16, where activations overflow: set it to False; "
        "fp16=True is safe"
    )


def test_4bit_with_8bit(sentence):
    assert sentence("model_args = dict(\n    load_in_4bit=True,\n    load_in_8bit=True)") == (
        "run.py:3: load_in_4bit=True and load_in_8bit=True (run.py:4) exclude each other: set one of them to False"
    )


@pytest.mark.parametrize("key", ["load_in_4bit", "load_in_8bit"])
def test_merging_needs_full_precision(sentence, key):
    assert sentence(f"model_args = dict(\n    merge_lora=True, adapter_path='a',\n    {key}=True)") == (
        f"run.py:3: merge_lora=True and {key}=True (run.py:4) exclude each other, because an adapter is merged into "
        f"full-precision weights only: set one of them to False"
    )


def test_a_rank_or_an_adapter(sentence, run):
    assert sentence("model_args = dict(lora_r=None)") == (
        "run.py:2: lora_r=None takes the rank of adapter_path, which is None too: set lora_r to a rank such as 16, or "
        "adapter_path to an adapter"
    )
    config, _ = run("model_args = dict(lora_r=None, adapter_path='ckpt/flare25-medgemma')")
    assert config.model_args.lora_r is None


@pytest.mark.parametrize("tokens", [8, 100, 144, 255, 512])
def test_image_tokens_that_pooling_cannot_produce(sentence, tokens):
    assert sentence(f"model_args = dict(image_token_len={tokens})") == (
        f"run.py:2: Gemma 3's projector cannot pool an image to image_token_len={tokens}: use 256, 128, 64, 32 or 16"
    )


@pytest.mark.parametrize("size", [448, 896])
@pytest.mark.parametrize("tokens", IMAGE_TOKENS)
def test_image_tokens_that_pooling_produces(run, tokens, size):
    config, _ = run(f"model_args = dict(image_token_len={tokens}, image_size={size})")
    rows, columns = token_grid(tokens)
    assert rows * columns == tokens and (size // 14) % rows == 0 and (size // 14) % columns == 0
    assert config.model_args.image_token_len == tokens


def test_token_grids():
    assert [token_grid(tokens) for tokens in IMAGE_TOKENS] == [(16, 16), (16, 8), (8, 8), (8, 4), (4, 4)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "model_args = dict(image_size=450)",
            "run.py:2: image_size=450 is not a multiple of 14, the side of a patch: use a multiple of 224 such as 448",
        ),
        (
            "model_args = dict(image_size=336)",
            "run.py:2: image_size=336 gives 24 x 24 patches, which cannot be pooled to 256 tokens (16 x 16): use a "
            "multiple of 224 such as 448",
        ),
        (
            "model_args = dict(image_size=56, image_token_len=32)",
            "run.py:2: image_size=56 gives 4 x 4 patches, which cannot be pooled to 32 tokens (8 x 4): use a "
            "multiple of 112 such as 112",
        ),
    ],
)
def test_image_sizes_that_the_pool_does_not_divide(sentence, lines, expected):
    assert sentence(lines) == expected


def test_a_size_the_pool_divides(run):
    assert run("model_args = dict(image_size=336, image_token_len=64)")[0].model_args.image_size == 336


def test_values_of_the_checkpoint_are_checked(run, sentence, checkpoint):
    checkpoint("gemma3", mm_tokens_per_image=4, vision_config={"image_size": 28, "patch_size": 14})
    lines = "model_args = dict(model_name_or_path='ckpt/here', max_length={}, image_token_len={})"
    run(lines.format(20, None))
    run(lines.format(20, 4))
    assert "max_length=8 has no room for one image of 4 tokens" in sentence(lines.format(8, None))
    assert "gives 2 x 2 patches, which cannot be pooled to 16 tokens (4 x 4)" in sentence(lines.format(40, 16))


def test_max_length_has_room_for_an_image(sentence, run):
    assert sentence("model_args = dict(image_token_len=128, max_length=128)") == (
        "run.py:2: max_length=128 has no room for one image of 128 tokens with its markers and one answer token: set "
        "it to at least 133 plus the length of the text"
    )
    run("model_args = dict(image_token_len=128, max_length=133)")
    assert "set it to at least 261 plus" in sentence("model_args = dict(max_length=260)")


def test_another_type_has_no_image_rules(run, sentence):
    run("model_args = dict(type='image-text', max_length=8)")
    run("model_args = dict(type='shikra', model_name_or_path='x/llava', image_token_len=7, image_size=100)")
    assert sentence("model_args = dict(type='image-text', image_size=100)") == (
        "run.py:2: model_args.image_size is only possible with type='medgemma', 'shikra' or 'perceptionGPT', and the "
        "type is 'image-text': remove it"
    )


def test_an_unknown_type(sentence):
    assert sentence("model_args = dict(type='medgema')") == (
        "run.py:2: unknown type 'medgema' in registry models: did you mean 'medgemma'? (model_args)"
    )


@pytest.mark.parametrize("name", ["shikra", "perceptionGPT"])
def test_another_family_with_a_gemma_checkpoint(sentence, checkpoint, name):
    assert sentence(f"model_args = dict(type='{name}')") == (
        f"run.py:2: type='{name}' cannot read ckpt/medgemma-4b-it: it is a Gemma 3 checkpoint; use type='medgemma'"
    )
    checkpoint("gemma2")
    assert sentence(f"model_args = dict(type='{name}', model_name_or_path='ckpt/here')") == (
        f"run.py:2: type='{name}' cannot read ckpt/here: it is a Gemma 2 checkpoint; use type='causal-lm'"
    )


def test_medgemma_with_another_checkpoint(sentence, run, checkpoint):
    lines = "model_args = dict(model_name_or_path='ckpt/here')"
    checkpoint("gemma3_text")
    assert sentence(lines) == (
        "model.py:2: type='medgemma' cannot read ckpt/here: it is a Gemma 3 checkpoint for text only, without a vision "
        "tower; use a checkpoint that reads images, such as google/medgemma-4b-it"
    )
    checkpoint("llava")
    assert sentence(lines) == (
        "model.py:2: type='medgemma' cannot read ckpt/here: it is a LLaVA checkpoint; use type='image-text' or a "
        "Gemma 3 checkpoint such as google/medgemma-4b-it"
    )
    checkpoint("gemma3")
    run(lines)


def test_fp16_keeps_the_residual_stream_in_fp32(run, caplog):
    caplog.set_level(logging.INFO)
    config, hardware = run("training_args = dict(fp16=True)", T4)
    assert config.training_args["fp16"] is False and hardware.precision == "fp16"
    assert "residual stream and adapters in fp32" in caplog.text


def test_precision_on_a_card(run):
    config, hardware = run("training_args = dict(bf16=True, tf32=True)")
    assert config.training_args["bf16"] is True and hardware.precision == "bf16"
    assert run("")[1].precision == "fp32"


GPU_ARGS = "training_args = dict({}=True, tf32=True, optim='{}')"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("optimizer", ["paged_adamw_8bit", "adamw_8bit", "paged_adamw_32bit", "adamw_bnb_8bit"])
def test_gpu_settings_on_a_cpu(run, caplog, precision, optimizer):
    caplog.set_level(logging.INFO)
    config, hardware = run(GPU_ARGS.format(precision, optimizer) + "\nmodel_args = dict(load_in_4bit=True)", CPU)
    assert hardware.precision == "fp32"
    assert config.training_args[precision] is False
    assert changed_values(config.training_args) == {
        "learning_rate": 1e-4,
        "tf32": False,
        "optim": "adamw_torch",
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    assert config.model_args.load_in_4bit
    reasons = [record.message for record in caplog.records]
    assert len(reasons) == 3
    assert reasons[0].startswith(f"on a CPU {precision} is slow")
    assert reasons[1] == "a CPU has no tf32: tf32 is off"
    assert reasons[2] == f"the optimizer '{optimizer}' needs a GPU: using 'adamw_torch'"


def test_bf16_on_a_cpu_is_kept_if_it_is_set(run):
    config, hardware = run("training_args = dict(bf16=True)\nhardware = dict(bf16=True)", CPU)
    assert config.training_args["bf16"] is True and hardware.precision == "bf16"


def test_use_cpu_ignores_the_gpu(run):
    config, hardware = run("training_args = dict(use_cpu=True, bf16=True)", T4)
    assert hardware.device == "cpu" and hardware.capability is None
    assert config.training_args["bf16"] is False


def test_an_unquantized_optimizer_is_unchanged(run):
    assert run("training_args = dict(optim='adamw_torch_fused')", CPU)[0].training_args["optim"] == "adamw_torch_fused"


def test_checkpointing_is_never_reentrant(run, caplog):
    caplog.set_level(logging.INFO)
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        caplog.clear()
        config, _ = run(f"training_args = dict({name}=True)")
        assert config.training_args[f"{name}_kwargs"] == {"use_reentrant": False}
        caplog.clear()
        config, _ = run(f"training_args = dict({name}=True, {name}_kwargs=dict(use_reentrant=True))")
        assert config.training_args[f"{name}_kwargs"] == {"use_reentrant": False}
        assert [record.message for record in caplog.records] == [
            "gradient checkpointing: use_reentrant is set to False"
        ]
    caplog.clear()
    run("training_args = dict(gradient_checkpointing=True, gradient_checkpointing_kwargs=dict(use_reentrant=False))")
    assert not caplog.records


def test_columns_are_never_removed(run):
    assert run("training_args = dict(remove_unused_columns=True)")[0].training_args["remove_unused_columns"] is False


def test_the_written_config_contains_the_adapted_values(run, write):
    config, _ = run("training_args = dict(fp16=True)", CPU)
    assert read_config(write(config.text, "config.py")) == config


def test_the_written_config_of_a_run_in_fp16_trains_in_fp16_again(run, write):
    config, _ = run("training_args = dict(fp16=True)", T4)
    again = read_config(write(config.text, "config.py"))
    assert again.training_args["fp16"] is True
    assert again.replaced(**{"training_args.fp16": False}) == config


def test_fp16_is_kept_on_a_cpu_if_the_config_says_so(run):
    config, hardware = run("training_args = dict(fp16=True)\nhardware = dict(fp16=True)", CPU)
    assert hardware.precision == "fp16" and config.training_args["fp16"] is False


def test_an_absent_gpu_is_logged_only_for_an_explicit_setting(run, caplog):
    caplog.set_level(logging.INFO)
    assert run("", CPU)[0].training_args["dataloader_pin_memory"] is False
    assert not caplog.records
    assert (
        run("training_args = dict(dataloader_pin_memory=True)", CPU)[0].training_args["dataloader_pin_memory"] is False
    )
    assert [record.message for record in caplog.records] == ["dataloader_pin_memory needs a GPU: it is off"]


@pytest.mark.parametrize("setting", ["max_steps=0", "max_steps=-3", "num_train_epochs=0", "learning_rate=0"])
def test_a_training_without_updates_is_refused(run, setting):
    with pytest.raises(ConfigError, match=rf"run\.py:\d+: {setting} trains nothing"):
        run(f"training_args = dict({setting})")


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_an_endless_number_of_epochs_is_refused(run, value):
    with pytest.raises(ConfigError, match=rf"run\.py:\d+: num_train_epochs={value} is no length of a run: set it"):
        run(f"training_args = dict(num_train_epochs=float('{value}'))")


@pytest.mark.parametrize(
    ("setting", "quoted"),
    [
        ("label_smoothing_factor=0.1", "label_smoothing_factor=0.1"),
        ("neftune_noise_alpha=5.0", "neftune_noise_alpha=5.0"),
        ("auto_find_batch_size=True", "auto_find_batch_size=True"),
        ("train_sampling_strategy='group_by_length'", "train_sampling_strategy='group_by_length'"),
        ("include_num_input_tokens_seen='all'", "include_num_input_tokens_seen='all'"),
    ],
)
def test_options_of_replaced_code_of_trainer_are_refused(sentence, setting, quoted):
    assert sentence(f"training_args = dict({setting})") == (
        f"run.py:2: {quoted} is not supported, because {refusal(setting.split('=')[0])}: remove it"
    )


def test_unsupported_options_at_their_defaults_are_accepted(run):
    run("training_args = dict(label_smoothing_factor=0.0, auto_find_batch_size=False, neftune_noise_alpha=None)")
