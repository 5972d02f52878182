"""The steps of a training run, in the order in which `finetune.py` takes them."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mllm.config.hardware import Hardware, environment
from mllm.config.schema import RunConfig
from mllm.dataset.builder import build_datasets
from mllm.dataset.collator import EncodedDataset, LogicalCollator
from mllm.dataset.sampler import LogicalBatchSampler
from mllm.engine.builder import logical_batch_size
from mllm.engine.callbacks import SKIPPED, rows_of
from mllm.engine.examination import examine
from mllm.engine.preflight import describe_batch, preflight
from mllm.engine.run_folder import open_run_folder
from mllm.engine.trainer import MultimodalTrainer
from mllm.export.card import Facts
from mllm.files import replaced_file, write_json, write_text
from mllm.models.adapters import trainable_report, trainable_table
from mllm.pipeline.merge import merge
from mllm.registry import EXPORTERS, METRICS
from mllm.structures import Bundle

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """A run's splits, and what the trainer is given of them."""

    splits: dict[str, Any]
    training: dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """The test split as the model answered it."""

    rows: list[dict[str, str]]
    figures: dict[str, float]


def open_run(config: RunConfig, hardware: Hardware, resume: bool) -> tuple[Path, Path | None]:
    """The run's folder with its config and environment in it, and the checkpoint to continue from.

    The first process opens it and tells the others its name.
    """
    state = PartialState(cpu=hardware.device == "cpu")  # later calls share this state
    opened: list[Any] = [None]
    if state.is_main_process:
        folder, checkpoint = open_run_folder(config.name, config.training_args.get("output_dir"), resume)
        logger.info("run folder: %s%s", folder, f", continuing from {checkpoint.name}" if checkpoint else "")
        write_text(folder / "config.py", config.text)
        write_json(folder / "environment.json", environment())
        opened = [(folder, checkpoint)]
    if state.num_processes > 1:
        broadcast_object_list(opened)
    return opened[0]


def prepare_data(config: RunConfig, bundle: Bundle, folder: Path) -> Data:
    """The config's splits, encoded in the loader's workers and dealt as logical batches."""
    state, training = PartialState(), config.training_args
    splits = build_datasets(config.data_args, seed=training.get("seed", 42))
    for name, split in splits.items():
        logger.info("%s: %s samples", name, f"{len(split):,}")
    collate = LogicalCollator(
        bundle.encoder.pad,
        samples_per_piece=training.get("per_device_train_batch_size", 8),
        tokens_per_piece=config.data_args.tokens_per_micro_batch,
    )
    dealt = dict(
        rank=state.process_index, world=state.num_processes, seed=training.get("data_seed") or training.get("seed", 42)
    )
    given: dict[str, Any] = {"collate": collate}
    for name, prefix in (("train", "train"), ("validation", "eval")):
        if name in splits:
            is_training = name == "train"
            size = logical_batch_size(training) if is_training else training.get("per_device_eval_batch_size", 8)
            given[f"{prefix}_dataset"] = EncodedDataset(splits[name], bundle.encoder.encode)
            given[f"{prefix}_sampler"] = LogicalBatchSampler(
                len(splits[name]),
                size,
                shuffle=is_training,
                drop_last=is_training and training.get("dataloader_drop_last", False),
                **dealt,
            )
    return Data(splits, given)


def examination(config: RunConfig, bundle: Bundle, data: Data) -> Answers | None:
    """The model's answers to the test split, where there is one; on the first process only."""
    if "test" not in data.splits or not PartialState().is_main_process:
        return None
    name = config.data_args.compute_metric
    metric = METRICS.find(name) if name else None
    return Answers(*examine(bundle, data.splits["test"], metric, **config.data_args.gen_kwargs))


def announce(trainer: MultimodalTrainer, bundle: Bundle, folder: Path) -> None:
    """Says what trains, proves on the first batch that it does, and writes that batch down."""
    logger.info("%s", trainable_table(trainable_report(bundle.model)))
    batch = trainer.first_batch()
    preflight(trainer.learner, batch, trainer.accelerator, trainer.skip_failures)
    if trainer.is_world_process_zero():
        encoder = bundle.encoder
        text = describe_batch(batch, encoder.tokenizer, encoder.processor.image_token_ids)
        write_text(folder / "first_batch.md", text)


def export(
    config: RunConfig, bundle: Bundle, trainer: MultimodalTrainer, folder: Path, answers: Answers | None
) -> None:
    """Writes the adapter, and the merged model where `export_args.merged` asks for it."""
    if not trainer.is_world_process_zero():
        return
    model = asdict(config.model_args)
    splits = {
        name: split for name, split in asdict(config.data_args).items() if name in ("train", "validation", "test")
    }
    settings = ("lora_r", "lora_alpha", "lora_target", "lora_dropout", "load_in_4bit", "load_in_8bit")
    facts = Facts(
        base=config.model_args.model_name_or_path,
        data=[f"{name}: `{split['type']}`" for name, split in splits.items() if split],
        training={key: model[key] for key in settings} | dict(config.training_args),
        figures={"updates": trainer.state.global_step, **(answers.figures if answers else {})},
    )
    if config.model_args.merge_lora and config.model_args.adapter_path:
        # A LoRA trained on folded weights means nothing to the base that its config would name.
        logger.info("merge_lora=True: the result is written whole, to merged/; an adapter would not fit the base")
        EXPORTERS.find("merged")(bundle, folder / "merged", settings=model, facts=facts)
        return
    adapter = EXPORTERS.find("adapter")(bundle, folder / "adapter", settings=model, facts=facts)
    if config.export_args.merged:
        merge(str(adapter), folder / "merged")


def report(trainer: MultimodalTrainer, folder: Path, answers: Answers | None, untrained: Answers | None) -> None:
    """Writes the predictions and says what came of the run and where it lies."""
    if not trainer.is_world_process_zero():
        return
    meter = trainer.meter
    if meter.truncated:
        logger.info("%d of %d samples were cut at max_length", meter.truncated, meter.samples)
    if meter.failures:
        logger.info("%d rows were skipped; %s lists them", len(meter.failures), folder / SKIPPED)
    if answers is not None:
        with replaced_file(folder / "predictions.jsonl") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in answers.rows)
    losses = [row["loss"] for row in rows_of(trainer.state) if "loss" in row]
    if losses:
        logger.info("training loss: %.4f at first, %.4f at last", losses[0], losses[-1])
    if answers is not None and "accuracy" in answers.figures:
        logger.info("%s", accuracy_line(answers.figures, untrained.figures if untrained else None))
    logger.info("all of it lies in %s: adapter/, training_log.json, loss.png, first_batch.md", folder)


def accuracy_line(trained: dict[str, float], untrained: dict[str, float] | None) -> str:
    """`held-out accuracy: 96.4 % (untrained 13.9 %, chance 14.3 %)`."""
    before = f"untrained {100 * untrained['accuracy']:.1f} %, " if untrained else ""
    return f"held-out accuracy: {100 * trained['accuracy']:.1f} % ({before}chance {100 * trained['chance']:.1f} %)"
