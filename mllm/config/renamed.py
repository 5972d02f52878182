"""Old config keys of Shikra, PerceptionGPT and transformers, and their current names."""

from __future__ import annotations

TRAINING = {
    "evaluation_strategy": "did you mean 'eval_strategy'?",
    "per_gpu_train_batch_size": "did you mean 'per_device_train_batch_size'?",
    "per_gpu_eval_batch_size": "did you mean 'per_device_eval_batch_size'?",
    "no_cuda": "did you mean 'use_cpu'?",
    **dict.fromkeys(
        ("push_to_hub_token", "push_to_hub_model_id", "push_to_hub_organization"), "upload the result with `mllm push`"
    ),
    "fsdp_transformer_layer_cls_to_wrap": "write fsdp_config=dict(transformer_layer_cls_to_wrap=...)",
    "fsdp_min_num_params": "write fsdp_config=dict(min_num_params=...)",
    "overwrite_output_dir": "it no longer exists; a folder that is not empty is never overwritten, "
    "use --resume or another output_dir",
    "warmup_ratio": "write the fraction as warmup_steps: a value below 1 is a fraction of all steps",
    "logging_dir": "it no longer exists; logs are written to the run folder",
    "save_safetensors": "it no longer exists; weights are always saved as safetensors",
    "group_by_length": "it is not needed; batches are always cut by length",
    "half_precision_backend": "it no longer exists; write bf16=True or fp16=True",
    "fp16_backend": "it no longer exists; write bf16=True or fp16=True",
    "fp16_opt_level": "it no longer exists; write bf16=True or fp16=True",
    "predict_with_generate": "it is not an option here; answers are written by mllm/pipeline/predict.py",
    "generation_max_length": "it is not an option here; answers are written by mllm/pipeline/predict.py",
    "generation_num_beams": "it is not an option here; answers are written by mllm/pipeline/predict.py",
    "do_multi_predict": "it is not an option here; answers are written by mllm/pipeline/predict.py",
    "lr": "did you mean 'learning_rate'?",
    **dict.fromkeys(("epochs", "max_epochs"), "did you mean 'num_train_epochs'?"),
    **dict.fromkeys(("batch_size", "train_batch_size"), "did you mean 'per_device_train_batch_size'?"),
    "eval_batch_size": "did you mean 'per_device_eval_batch_size'?",
    "lora_enable": "LoRA is set in model_args: did you mean model_args.lora_r?",
    **{name: f"LoRA is set in model_args: did you mean model_args.{name}?" for name in ("lora_r", "lora_alpha")},
    "lora_dropout": "LoRA is set in model_args: did you mean model_args.lora_dropout?",
}
"""Arguments of transformers 4.28 that `transformers.TrainingArguments` no longer has, and names of other trainers."""

_ELSEWHERE = "it is not needed: the checkpoint's own processor and chat template do this"
_LOSS = "an objective has its own weight: did you mean objectives = dict({}=dict(type='{}', weight=...))?"
MODEL = {
    **dict.fromkeys(
        ("device_map", "max_memory", "offload_folder"),
        "a model larger than one GPU is divided by training_args.fsdp or training_args.deepspeed, with which all GPUs "
        "compute at the same time; with a device map one would wait for the other",
    ),
    "version": "did you mean 'type'? (the version follows from the checkpoint)",
    "cache_dir": "set the environment variable HF_HOME",
    "model_max_length": "did you mean 'max_length'?",
    "mm_use_im_start_end": _ELSEWHERE,
    "sep_image_conv_front": _ELSEWHERE,
    "process_func_args": _ELSEWHERE,
    "conv_args": f"{_ELSEWHERE}; its truncation_size is max_length, its Expand2square is pad_to_square",
    "target_processor": "did you mean 'box_format'? PlainBoxFormatter is dict(type='normalized_text'), TokenFormatter "
    "dict(type='location_tokens'), UnifiedFormatter dict(type='perception_token')",
    **dict.fromkeys(
        ("gen_kwargs_set_pad_token_id", "gen_kwargs_set_bos_token_id", "gen_kwargs_set_eos_token_id"), _ELSEWHERE
    ),
    "lora_enable": "did you mean 'lora_r'? a rank turns LoRA on; freeze_backbone=True turns it off",
    "lora_target_modules": "did you mean 'lora_target'?",
    **dict.fromkeys(("r", "rank"), "did you mean 'lora_r'?"),
    "alpha": "did you mean 'lora_alpha'?",
    "init_peft_inside": "it no longer exists; the adapter is attached by lora_r",
    "freeze_autoencoder": "it no longer exists; the heads of model_args.heads train",
    "lm_loss_weight": _LOSS.format("next_token", "NextToken"),
    "box_loss_weight": _LOSS.format("box", "BoxLoss"),
    "recon_loss_weight": _LOSS.format("mask", "MaskLoss"),
    "l2_loss_weight": _LOSS.format("box", "BoxLoss"),
}
"""Keys of `model_args` in Shikra and PerceptionGPT, and their replacements."""
DATA = {
    "collator_kwargs": "it is not needed: batches are padded to their longest sample, model_args.max_length at most",
    "multitest": "did you mean 'test'? name one split there, and evaluate others with mllm/pipeline/evaluate_model.py",
    **dict.fromkeys(("multival", "val", "valid", "dev", "eval", "evaluation"), "did you mean 'validation'?"),
    **dict.fromkeys(("metric", "metrics"), "did you mean 'compute_metric'?"),
    "lazy_init": "it is not needed: rows are read when they are used",
}
"""Keys of `data_args` in Shikra and PerceptionGPT, and their replacements."""
OPTIONS = {"filename": "data_path", "group_field": "patient_column"}
"""Old options of datasets -> their current names. Configs may use both."""
