"""The training of a run, from the checks before the first update to the last checkpoint."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mllm.config.hardware import Hardware
from mllm.config.schema import RunConfig
from mllm.dataset.checking import Splits
from mllm.engine.checkpoints import newest_checkpoint
from mllm.engine.epoch_folders import EpochFolders
from mllm.engine.first_batch import describe_batch
from mllm.engine.progress import close_bars
from mllm.engine.run_log import run_folder
from mllm.engine.trainer import MultimodalTrainer
from mllm.files import write_text
from mllm.models.adapters.trainable import format_counts
from mllm.protocols import Bundle
from mllm.registry import EXPORTERS
from mllm.run.facts import run_facts
from mllm.run.folder import point_latest
from mllm.run.kernels import use_kernels
from mllm.run_files import ADAPTER, FIRST_BATCH, data_page_of
from mllm.structures import Failure

logger = logging.getLogger(__name__)


def check_training(config: RunConfig, hardware: Hardware, trainer: MultimodalTrainer, bundle: Bundle) -> None:
    """Log the trainable parameters, check on the first batch that all of them train, and write `first_batch.md`.

    Kernels that the config asks for are turned on and compared with PyTorch on that batch.
    """
    if not bundle.model.generates_text:
        logger.info("Active: trainable parameters")  # the third phase of the log of `mllm.models.gemma3n.ncore_log`
    logger.info("%s", format_counts(trainer.parameters))
    batch = trainer.preflight()
    use_kernels(config, trainer, batch, hardware.precision)
    if trainer.is_world_process_zero():
        folder = run_folder(trainer.args)
        write_text(folder / FIRST_BATCH, describe_batch(batch, bundle.encoder) + _link_to_data_page(config, folder))


def _link_to_data_page(config: RunConfig, folder: Path) -> str:
    """Return a link from a run folder to the page of `mllm data`; empty if the command was not called."""
    page = data_page_of(config.name)
    if not page.is_file():
        return ""
    link = f"[{page.name}]({os.path.relpath(page, folder.resolve())})"
    return f"\nAll data of this config, as of the last `mllm data`: {link}\n"


def train(
    config: RunConfig,
    bundle: Bundle,
    trainer: MultimodalTrainer,
    splits: Splits,
    checkpoint: Path | None,
) -> None:
    """Train the model, starting from `checkpoint` if it is not None.

    A `KeyboardInterrupt` is raised again with the number of updates and the checkpoint that `--resume` continues from.
    """
    if trainer.is_world_process_zero() and not config.training_args["output_dir"]:
        point_latest(run_folder(trainer.args))
    # A private run that is killed repeats the updates after its last checkpoint, so only checkpoints may contain them.
    writes_epochs = config.privacy_args is None and config.training_args["save_strategy"] != "no"
    if not bundle.model.generates_text and writes_epochs and trainer.is_sharded:
        logger.info("no folders of epochs are written, because the engine divides the weights during the training")
    elif not bundle.model.generates_text and writes_epochs:

        def export_epoch(folder: Path) -> None:
            splits.add_skipped(trainer.meter.failures.values())
            EXPORTERS.find(ADAPTER)(bundle, folder, facts=run_facts(config, trainer, splits))

        trainer.add_callback(EpochFolders(export_epoch))
    for split, message in splits.skipped():
        trainer.meter.skip(split, [Failure(message)])
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt:
        newest = newest_checkpoint(run_folder(trainer.args))
        resume = f"--resume continues from {newest}" if newest else "no checkpoint has been written yet"
        raise KeyboardInterrupt(f"{trainer.updates} updates were made, and {resume}") from None
    finally:
        close_bars(trainer.callback_handler.callbacks)
