"""Facts about a run, for `facts.json` and the cards of its exports."""

from __future__ import annotations

from dataclasses import asdict

from mllm.config.rules.sharding import engine_of
from mllm.config.schema import RunConfig
from mllm.config.trainable import LORA, trained_parts
from mllm.config.training_args import changed_values
from mllm.dataset.checking import Splits
from mllm.engine.private_trainer import PrivateTrainer
from mllm.engine.run_log import run_folder
from mllm.engine.trainer import MultimodalTrainer
from mllm.export.facts import Facts, Split, current_versions
from mllm.export.settings import encoding_settings
from mllm.run.memory import memory_facts

MODEL_KEYS = ("adapter_path", "lora_r", "lora_alpha", "lora_target", "lora_dropout", "load_in_4bit", "load_in_8bit")
"""Keys of `model_args` that influence the trained weights and are not part of the encoding."""
LORA_KEYS = ("lora_r", "lora_alpha", "lora_target", "lora_dropout")
"""Those of `MODEL_KEYS` that have no effect without a LoRA."""
OTHER_PREFIXES = (
    *("dataloader_", "logging_", "eval_", "save_", "output_dir", "report_to", "disable_tqdm"),
    "remove_unused_columns",
)
"""Prefixes of `training_args` that do not influence the weights."""


def run_facts(config: RunConfig, trainer: MultimodalTrainer, splits: Splits) -> Facts:
    """Return the facts about a run after its latest update, without figures."""
    model, data = asdict(config.model_args), asdict(config.data_args)
    changed = changed_values(config.training_args, is_private=config.privacy_args is not None)
    training = {key: value for key, value in changed.items() if not key.startswith(OTHER_PREFIXES)}
    has_lora = trained_parts(config.model_args).has_lora
    keys = [key for key in MODEL_KEYS if has_lora or key not in LORA_KEYS]
    keys += ["trainable"] if config.model_args.trainable != LORA else []
    keys += ["from_scratch", "init_seed"] if config.model_args.from_scratch else []
    return Facts(
        base=config.model_args.model_name_or_path,
        settings=encoding_settings(model),
        data={
            name: Split(data[name]["type"], len(split), len(splits.reports[name].skipped))
            for name, split in splits.items()
        },
        training={key: model[key] for key in keys} | training,
        parameters={
            count.tower: {"tensors": count.tensors, "trainable": count.parameters, "all": count.total}
            for count in trainer.parameters
        },
        updates=trainer.updates,
        processes=trainer.args.world_size,
        engine=engine_of(config),
        idle_steps=trainer.idle_steps,
        privacy=trainer.record if isinstance(trainer, PrivateTrainer) else None,
        memory=memory_facts(run_folder(trainer.args), trainer),
        versions=current_versions(),
    )
