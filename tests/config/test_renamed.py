from __future__ import annotations

import pytest

from mllm.config.reading import read_config
from mllm.errors import ConfigError


@pytest.mark.parametrize(
    ("section", "key", "answer"),
    [
        ("model_args", "version", "did you mean 'type'?"),
        ("model_args", "cache_dir", "HF_HOME"),
        ("model_args", "model_max_length", "did you mean 'max_length'?"),
        ("model_args", "device_map", "is divided by training_args.fsdp or training_args.deepspeed"),
        ("model_args", "mm_use_im_start_end", "the checkpoint's own processor"),
        ("model_args", "sep_image_conv_front", "the checkpoint's own processor"),
        ("model_args", "process_func_args", "the checkpoint's own processor"),
        ("model_args", "conv_args", "pad_to_square"),
        ("model_args", "target_processor", "did you mean 'box_format'?"),
        ("model_args", "gen_kwargs_set_bos_token_id", "it is not needed"),
        ("model_args", "lora_enable", "did you mean 'lora_r'?"),
        ("model_args", "init_peft_inside", "it no longer exists"),
        ("model_args", "freeze_autoencoder", "the heads of model_args.heads train"),
        ("model_args", "lm_loss_weight", "NextToken"),
        ("model_args", "box_loss_weight", "BoxLoss"),
        ("model_args", "recon_loss_weight", "MaskLoss"),
        ("model_args", "l2_loss_weight", "BoxLoss"),
        ("data_args", "collator_kwargs", "model_args.max_length"),
        ("data_args", "multitest", "did you mean 'test'?"),
        ("data_args", "multival", "did you mean 'validation'?"),
        ("data_args", "lazy_init", "rows are read when they are used"),
        ("training_args", "lora_enable", "did you mean model_args.lora_r?"),
        ("training_args", "lora_alpha", "did you mean model_args.lora_alpha?"),
        ("training_args", "evaluation_strategy", "did you mean 'eval_strategy'?"),
    ],
)
def test_old_keys_are_refused_with_their_current_name(write, bases, section, key, answer):
    with pytest.raises(ConfigError) as excinfo:
        read_config(write(bases + f"{section} = dict({key}=1)\n"))
    assert str(excinfo.value).startswith(f"run.py:2: unknown key '{key}' in {section}: ")
    assert answer in str(excinfo.value)
