"""Treatment of every field of `transformers.TrainingArguments`: supported, mapped to something else, or refused.

Each field is in exactly one of the tables below. A field in none of them is refused, so a new field of transformers
has to be checked before it can be used.
"""

from __future__ import annotations

from typing import Any

SUPPORTED = frozenset(
    (
        *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
        *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
        *("bf16", "fp16", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("logging_strategy", "logging_steps", "logging_first_step", "disable_tqdm", "report_to", "run_name"),
        *("log_level", "log_level_replica", "log_on_each_node", "project"),
        *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"),
        *("save_strategy", "save_steps", "save_total_limit"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        *("full_determinism", "seed", "data_seed", "use_cpu"),
        *("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout", "fsdp", "fsdp_config", "deepspeed"),
    )
)
"""Fields that work as transformers documents them. Some values of them are refused by `mllm.config.rules`."""

MAPPED = {
    "output_dir": "the run folder; without it, a new folder below runs/",
    "per_device_train_batch_size": "the size of a piece; the loader reads a whole logical batch",
    "gradient_accumulation_steps": "the number of pieces of a logical batch; Trainer itself does not accumulate",
    "gradient_checkpointing": "turned on in the model itself, always non-reentrant",
    "gradient_checkpointing_kwargs": "options of the model's checkpointing",
    "activation_checkpointing": "new name of gradient_checkpointing",
    "activation_checkpointing_kwargs": "new name of gradient_checkpointing_kwargs",
    "remove_unused_columns": "always False: the encoder decides which tensors reach the model",
    "logging_nan_inf_filter": "always False: a loss that is not finite ends the run",
    "use_liger_kernel": "its kernels for norms, positions and feed-forward layers only, checked on the first batch",
    "ddp_broadcast_buffers": "always False: buffers do not change",
    "ddp_find_unused_parameters": "computed from the trained towers",
    "bf16_full_eval": "always off: evaluation uses autocast",
    "fp16_full_eval": "refused by the rules for precision",
}
"""Fields that this program reads itself or sets, and their meaning."""

_BATCHES = "the sampler and the collator of this program make the batches"
_LOSS = "the objectives compute the loss"
_EVALUATION = "the validation split is evaluated by its loss, and the test split by data_args.compute_metric"
_HUB = "Trainer would upload the whole run folder, with samples and local paths; upload the result with `mllm push`"
_TRACKIO = "it uploads the run to a Space or bucket of the Hugging Face Hub; upload the result with `mllm push`"

REFUSED = {
    **dict.fromkeys(("label_smoothing_factor", "liger_kernel_config"), _LOSS),
    "neftune_noise_alpha": "the embeddings of the model are not those that Trainer would change",
    "torch_empty_cache_steps": "this program has its own training step",
    "use_cache": "training never uses a cache",
    "average_tokens_across_devices": "tokens are always counted over all processes",
    "optim_target_modules": "it belongs to GaLore and APOLLO, but only adapters and heads are trained",
    **dict.fromkeys(
        (
            *("auto_find_batch_size", "train_sampling_strategy", "length_column_name", "label_names"),
            *("accelerator_config", "dataloader_in_order", "dataloader_multiprocessing_context"),
        ),
        _BATCHES,
    ),
    "include_num_input_tokens_seen": "the log has tokens_per_second",
    "skip_memory_metrics": "the log has peak_memory_gb",
    "debug": "a loss or gradient that is not finite ends the run without it",
    **dict.fromkeys(
        (
            *("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
            *("include_for_metrics", "batch_eval_metrics"),
        ),
        _EVALUATION,
    ),
    "save_only_model": "--resume needs the optimizer",
    "save_on_each_node": "the first process writes the run folder",
    "enable_jit_checkpoint": "such a checkpoint would have no completion mark, and --resume would not find it",
    "ignore_data_skip": "a resumed run would train on the first rows of the epoch again",
    "restore_callback_states_from_checkpoint": "callbacks read their state from the log of the checkpoint",
    "resume_from_checkpoint": "continue a run with the option --resume",
    **dict.fromkeys(
        (
            *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
            "hub_revision",
        ),
        _HUB,
    ),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _TRACKIO),
    "parallelism_config": "tensor and context parallelism are not supported",
    "ddp_static_graph": "batches with and without images have different graphs",
    "ddp_backend": "it follows from the device: nccl on GPUs, gloo on a CPU",
    "local_rank": "torchrun sets it",
    "do_train": "`mllm train` always trains",
    "do_eval": "eval_strategy decides about evaluations",
    "do_predict": "the test split is evaluated if there is one",
}
"""Fields whose values other than the default are refused, and the reason."""

REFUSED_OPTIMIZERS = {
    **dict.fromkeys(
        (
            *("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise"),
            *("galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "apollo_adamw", "apollo_adamw_layerwise"),
        ),
        "it projects the gradients of full weights, but only adapters and heads are trained",
    ),
    **dict.fromkeys(("lomo", "adalomo"), "it updates weights within the backward pass, before pieces are summed"),
    **dict.fromkeys(
        ("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"),
        "its weights of training and of evaluation differ, and exports would hold those of training",
    ),
}
"""Optimizers of transformers that cannot train here, and the reason."""
REFUSED_VALUES = {"optim": tuple(REFUSED_OPTIMIZERS), "save_strategy": ("best",)}
"""Values of supported fields that `mllm.config.rules` refuses, which no message suggests."""

TRACKERS = ("tensorboard", "wandb", "mlflow", "comet_ml", "swanlab", "trackio", "dvclive")
"""Trackers of transformers that `report_to` may name: they upload figures and `training_args` at most. Others upload
checkpoints by default (ClearML), or belong to one platform."""
LOCAL_TRACKERS = ("tensorboard",)
"""Trackers that write to the run folder only, the only ones of a private run."""
UPLOADING_VARIABLES = {
    "wandb": ("WANDB_LOG_MODEL",),
    "mlflow": ("HF_MLFLOW_LOG_ARTIFACTS",),
    "comet_ml": ("COMET_LOG_ASSETS",),
    "swanlab": ("SWANLAB_LOG_MODEL",),
    "trackio": ("TRACKIO_SPACE_ID",),
    "dvclive": ("HF_DVCLIVE_LOG_MODEL",),
}
"""Environment variables with which a tracker also uploads checkpoints, or publishes the run."""
FALSE_VALUES = ("", "0", "false", "no", "off")
"""Values of `UPLOADING_VARIABLES`, in lower case, that turn the upload off."""


def refusal(name: str) -> str | None:
    """Return the reason to refuse values of a field other than its default; None for a supported or mapped field."""
    if name in SUPPORTED or name in MAPPED:
        return None
    return REFUSED.get(name, "it is new in this version of transformers and has not been checked")


def is_default(value: Any, default: Any) -> bool:
    """Return True for the default of a field, and for an empty value if the default is empty."""
    return bool(value == default) or (not default and not value)
