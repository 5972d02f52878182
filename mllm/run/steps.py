"""The steps of a training run, in the order in which `finetune.py` takes them."""

from __future__ import annotations

import gc
import logging
from dataclasses import asdict, replace
from pathlib import Path

from accelerate import PartialState

from mllm.config.rules.privacy import refuse_large_delta
from mllm.config.schema import RunConfig
from mllm.dataset.base import SampleDataset
from mllm.dataset.builder import build_datasets
from mllm.dataset.loading.poisson import units_of
from mllm.engine.callbacks import SKIPPED, close_bars, rows_of, run_folder, write_skipped
from mllm.engine.checkpoints import newest_checkpoint
from mllm.engine.epoch_folders import EpochFolders
from mllm.engine.evaluation import PLAIN, Examination, described, examine
from mllm.engine.preflight import describe_batch
from mllm.engine.privacy.record import card_lines
from mllm.engine.private_trainer import PrivateTrainer
from mllm.engine.trainer import MultimodalTrainer
from mllm.errors import ConfigError
from mllm.export.card import Facts, card_text
from mllm.files import write_json, write_text
from mllm.metrics.measure_table import agreement_table
from mllm.models.adapters.attach import trainable_report, trainable_table
from mllm.models.backbone.loading import find_checkpoint
from mllm.models.vision_model import VisionModel
from mllm.pipeline.merge import merge
from mllm.predict.writer import write_predictions
from mllm.registry import EXPORTERS, METRICS
from mllm.report.data_summary import draw_agreement
from mllm.run.folder import point_latest
from mllm.run_files import METRICS as METRICS_FILE
from mllm.run_files import PREDICTIONS
from mllm.structures import Bundle

logger = logging.getLogger(__name__)

ASIDE = (
    "dataloader_",
    "logging_",
    "eval_",
    "save_",
    "output_dir",
    "report_to",
    "disable_tqdm",
    "remove_unused_columns",
)
"""What `training_args` that begin so say does not shape the weights, and stays out of the card."""


def open_splits(config: RunConfig) -> dict[str, SampleDataset]:
    """The config's splits; weights or data that are not there are refused before a run folder is made."""
    find_checkpoint(config.model_args.model_name_or_path)
    if config.data_args.train is None:
        raise ConfigError(
            f"{config.place('data_args', 'train')}: data_args.train is None or absent, and there is nothing to learn "
            "without it: give it a dataset, such as dict(type='VQADataset', data_path='rows.jsonl')"
        )
    splits = build_datasets(config.data_args, seed=config.training_args.get("seed", 42))
    if config.privacy_args is not None:
        refuse_large_delta(config, len(units_of(splits["train"], config.privacy_args.unit)))
    logger.info("%s", ", ".join(f"{name}: {len(split):,} samples" for name, split in splits.items()))
    return splits


def examination(config: RunConfig, bundle: Bundle, splits: dict[str, SampleDataset]) -> Examination | None:
    """The model's answers to the test split, where there is one; on the first process only."""
    if "test" not in splits or not PartialState().is_main_process:
        return None
    bundle.model.to(PartialState().device)  # before training it may still lie in host memory
    metrics = {name: METRICS.find(name) for name in config.data_args.metrics}
    skip = config.data_args.on_error == "skip"
    return examine(bundle, splits["test"], metrics, skip_failures=skip, **config.data_args.gen_kwargs)


def announce(trainer: MultimodalTrainer, bundle: Bundle, folder: Path) -> None:
    """Says what trains, proves on the first batch that it does, and writes that batch down."""
    if isinstance(bundle.model, VisionModel):
        logger.info("Active: what trains")
    logger.info("%s", trainable_table(trainable_report(bundle.model)))
    batch = trainer.preflight()
    if trainer.is_world_process_zero():
        write_text(folder / "first_batch.md", describe_batch(batch, bundle))


def train(
    config: RunConfig,
    bundle: Bundle,
    trainer: MultimodalTrainer,
    splits: dict[str, SampleDataset],
    checkpoint: Path | None,
) -> None:
    """Trains, from a checkpoint on where there is one; Ctrl-C is told what it leaves."""
    if trainer.is_world_process_zero() and not config.training_args.get("output_dir"):
        point_latest(run_folder(trainer.args))
    # A killed private run makes the updates behind its last checkpoint again, so nothing but checkpoints may show them.
    if isinstance(bundle.model, VisionModel) and config.privacy_args is None:

        def write_epoch(folder: Path) -> None:
            facts = known_facts(config, trainer, splits)  # now, for it counts the updates
            EXPORTERS.find("adapter")(bundle, folder, settings=asdict(config.model_args), facts=facts)

        trainer.add_callback(EpochFolders(write_epoch))
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt:
        kept = newest_checkpoint(run_folder(trainer.args))
        left = f"--resume continues from {kept}" if kept else "no checkpoint has been written yet"
        raise KeyboardInterrupt(f"{trainer.state.global_step} updates were made, and {left}") from None
    finally:
        close_bars(trainer.callback_handler.callbacks)


def export(
    config: RunConfig, bundle: Bundle, trainer: MultimodalTrainer, splits: dict[str, SampleDataset], folder: Path
) -> Path | None:
    """Writes the adapter, and the merged model where `export_args.merged` asks for it; gives the first one's folder."""
    if not trainer.is_world_process_zero():
        return None
    model, facts = asdict(config.model_args), known_facts(config, trainer, splits)
    if config.model_args.merge_lora and config.model_args.adapter_path:
        # A LoRA trained on folded weights means nothing to the base that its config would name.
        logger.info("merge_lora=True: the result is written whole, to merged/; an adapter would not fit the base")
        return Path(EXPORTERS.find("merged")(bundle, folder / "merged", settings=model, facts=facts))
    adapter = EXPORTERS.find("adapter")(bundle, folder / "adapter", settings=model, facts=facts)
    if isinstance(bundle.model, VisionModel):
        EXPORTERS.find("student")(bundle, folder / "student", settings=model, facts=facts)
    elif config.export_args.merged:
        merge(str(adapter), folder / "merged", replaces=True)
    return Path(adapter)


def known_facts(config: RunConfig, trainer: MultimodalTrainer, splits: dict[str, SampleDataset]) -> Facts:
    """What the card says of a run before its examination; no path of the machine is among it."""
    model = asdict(config.model_args)
    types = asdict(config.data_args)
    settings = ("adapter_path", "lora_r", "lora_alpha", "lora_target", "lora_dropout", "load_in_4bit", "load_in_8bit")
    shaping = {key: value for key, value in config.training_args.items() if not key.startswith(ASIDE)}
    return Facts(
        base=config.model_args.model_name_or_path,
        data=[f"{name}: `{types[name]['type']}`, {len(split):,} samples" for name, split in splits.items()],
        training={key: model[key] for key in settings} | shaping,
        figures={"updates": trainer.state.global_step},
        privacy=card_lines(trainer.record) if isinstance(trainer, PrivateTrainer) else (),
    )


def report(
    config: RunConfig,
    trainer: MultimodalTrainer,
    splits: dict[str, SampleDataset],
    written: Path | None,
    answers: Examination | None,
    untrained: Examination | None,
) -> None:
    """Writes the predictions, adds their figures to the card, and says what came of the run and where it lies."""
    if written is None:
        return
    meter, folder = trainer.meter, run_folder(trainer.args)
    if answers is not None:
        facts = known_facts(config, trainer, splits)
        facts = replace(facts, figures={**facts.figures, **answers.named_figures})
        write_text(written / "README.md", card_text(written.name, asdict(config.model_args), facts))
        write_predictions(folder / PREDICTIONS, answers.rows)
        if "measures" in answers.figures:
            draw_agreement(answers.rows, folder)
        write_json(folder / METRICS_FILE, {"figures": answers.figures})
        meter.skip(answers.skipped)
        write_skipped(folder, meter.failures)
    if meter.truncated:
        logger.info("%d of %d samples were cut at max_length", meter.truncated, meter.samples)
    if meter.failures:
        logger.info("%d rows were skipped; %s lists them", len(meter.failures), folder / SKIPPED)
    losses = [row["loss"] for row in rows_of(trainer.state) if "loss" in row]
    if losses:
        logger.info("training loss: %.4f at first, %.4f at last", losses[0], losses[-1])
    for name, figures in answers.figures.items() if answers else ():
        before = untrained.figures.get(name) if untrained else None
        logger.info("%s", accuracy_line(figures, before) if name == PLAIN else figure_line(name, figures, before))
    logger.info("all of it lies in %s: %s/, training_log.json, loss.png, first_batch.md", folder, written.name)


def accuracy_line(trained: dict[str, float], untrained: dict[str, float] | None) -> str:
    """`held-out accuracy: 96.4 % (untrained 13.9 %, chance 14.3 %)`."""
    before = f"untrained {100 * untrained['accuracy']:.1f} %, " if untrained else ""
    return f"held-out accuracy: {100 * trained['accuracy']:.1f} % ({before}chance {100 * trained['chance']:.1f} %)"


def figure_line(name: str, trained: dict[str, float], untrained: dict[str, float] | None) -> str:
    """`held-out rec: accuracy 0.8750, failed 0, samples 8 (untrained: accuracy 0.0000, ...)`; measures in a table."""
    if name == "measures":
        before = f"\nuntrained:\n{agreement_table(untrained)}" if untrained else ""
        return f"held-out measures, with 95 % intervals by patient:\n{agreement_table(trained)}{before}"
    return f"held-out {name}: {described(trained)}" + (f" (untrained: {described(untrained)})" if untrained else "")


def leave() -> None:
    """Ends what the processes of a run share, and the threads behind it, once nobody else holds it.

    A thread that gives a tensor back while the interpreter ends would crash a process whose work is done.
    """
    state = PartialState()
    if state.num_processes > 1:
        gc.collect()  # the trainer and its model refer to each other, and hold what is shared
        state.destroy_process_group()
