"""Steps of a training run, in order."""

from __future__ import annotations

from transformers import set_seed

from mllm.config.hardware import Hardware
from mllm.config.schema import RunConfig
from mllm.engine.builder import build_learner, memory_advice, prepare_trainer
from mllm.engine.process_group import end_processes, start_processes
from mllm.errors import advise_on_memory
from mllm.models.builder.builder import load_pretrained
from mllm.run.data import (
    limit_tiny_updates,
    open_splits,
    planned_updates,
    prepare_data,
    scale_measures,
    updates_per_epoch,
)
from mllm.run.distill import cache_features, fit_objectives, load_teacher, release_teacher, training_encoder
from mllm.run.early_checks import check_early
from mllm.run.finish import (
    changes_of,
    evaluate_test_split,
    export,
    log_results,
    report,
    write_results,
    write_untrained,
)
from mllm.run.folder import removed_if_refused
from mllm.run.lengths import refuse_unusable_texts, warn_of_cut_samples
from mllm.run.memory import start_plan
from mllm.run.open import open_run
from mllm.run.train import check_training, train
from mllm.run.vision_cache import store_training_features
from mllm.run.warning_log import WarningLog, collected_warnings
from mllm.run_files import UNTRAINED


def run_steps(config: RunConfig, hardware: Hardware, *, tiny: bool, resume: bool, plans: bool | None = None) -> None:
    """Train the model of a config and write its run folder.

    Args:
        config: A config that was checked and adapted to the hardware.
        hardware: The hardware of this process.
        tiny: Limit the number of updates.
        resume: Continue the run that trained last from its newest checkpoint.
        plans: Compare the memory with that of a plan; None: on a GPU.
    """
    with collected_warnings() as warnings:
        _run_steps(config, hardware, tiny, resume, warnings, plans)
    end_processes()  # here, because the model and the trainer are no longer referenced


def _run_steps(
    config: RunConfig, hardware: Hardware, tiny: bool, resume: bool, warnings: WarningLog, plans: bool | None
) -> None:
    start_processes(hardware.device, config.training_args["ddp_timeout"])
    splits = open_splits(config)
    if tiny:
        config = limit_tiny_updates(config, splits)
    updates = planned_updates(config, splits["train"])
    config = check_early(config, hardware, updates, updates / max(1, updates_per_epoch(config, splits["train"])))
    folder, checkpoint = open_run(config, hardware, splits, resume)
    set_seed(config.training_args["seed"])
    planning = start_plan(hardware, folder, plans)
    with planning, advise_on_memory(memory_advice(config)):
        is_new = checkpoint is None and not config.training_args["output_dir"]
        with removed_if_refused(folder, is_new), planning:
            bundle = load_pretrained(config.model_args, hardware)
            teacher = load_teacher(config, hardware, bundle)
        learner = build_learner(config, bundle, teacher)

        scale_measures(config, bundle, splits["train"])
        cache = cache_features(config, teacher, splits)
        if teacher is not None and cache is not None:
            release_teacher(learner, teacher)
        encoder = training_encoder(bundle, teacher, cache)
        fit_objectives(learner, encoder, splits["train"])
        data = prepare_data(config, hardware, bundle, encoder, splits)
        if bundle.model.generates_text:
            refuse_unusable_texts(config, bundle.encoder, splits)
            warn_of_cut_samples(config, bundle.encoder, splits)
        untrained = None
        if config.data_args.compute_untrained:
            untrained = evaluate_test_split(config, bundle, splits, folder, UNTRAINED)
            write_untrained(folder, untrained)

        store_training_features(config, hardware, bundle, splits, planned_updates(config, splits["train"]))
        trainer = prepare_trainer(config, hardware, learner, folder, data)
        trainer.meter.before = planning.resident
        check_training(config, hardware, trainer, bundle)
        train(config, bundle, trainer, splits, checkpoint)
        planning.finish()

        exports = export(config, bundle, trainer, splits)  # before the evaluation, which can fail
        evaluation = evaluate_test_split(config, bundle, splits, folder)
        changes = changes_of(config, untrained, evaluation)
        write_results(config, trainer, splits, exports, evaluation, untrained, changes)
        log_results(config, trainer, evaluation, untrained, changes)
        report(trainer, splits, exports, warnings)
        if exports.refusal is not None:
            raise exports.refusal
