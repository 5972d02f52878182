"""The end of a run: exports, evaluation of the test split, facts and the closing log lines."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from accelerate import PartialState

from mllm.config.schema import RunConfig
from mllm.dataset.builder import miniatures
from mllm.dataset.challenge import write_challenge_files
from mllm.dataset.checking import Splits
from mllm.engine.answered_rows import Row
from mllm.engine.evaluation import Evaluation, answer_split, score_split
from mllm.engine.run_log import rows_of, run_folder, write_skipped
from mllm.engine.trainer import MultimodalTrainer
from mllm.engine.unfinished import STEM, UnfinishedPredictions, remove_unfinished
from mllm.errors import ConfigError, UserError
from mllm.export.facts import Facts, write_facts, write_metrics
from mllm.export.folder import update_figures
from mllm.export.former import former_exports, remove_former_results
from mllm.export.merge import merge
from mllm.files import write_json
from mllm.predict.evaluate import answers_of_model, data_fingerprint
from mllm.predict.metrics import find_metrics
from mllm.predict.shared_images import question_groups, sharing_restored
from mllm.predict.strata import add_strata, parse_columns
from mllm.predict.writer import write_predictions
from mllm.protocols import Bundle
from mllm.registry import EXPORTERS
from mllm.report.compare import figures_of_differences, paired_differences
from mllm.report.data_summary import draw_agreement, write_summary
from mllm.report.figures import figures_line, strata_table
from mllm.report.run.page import write_report
from mllm.run.facts import run_facts
from mllm.run.memory import memory_facts
from mllm.run.warning_log import WarningLog
from mllm.run_files import (
    ADAPTER,
    FIRST_BATCH,
    LOSS_PLOT,
    MERGED,
    METRICS,
    MINIATURE,
    PREDICTIONS,
    SKIPPED_ROWS,
    STUDENT,
    TRAINING_LOG,
    UNTRAINED,
    data_page_of,
    runs_of,
)

logger = logging.getLogger(__name__)
Figures = dict[str, dict[str, float]]
"""Metric -> figure -> value."""


def evaluate_test_split(
    config: RunConfig, bundle: Bundle, splits: Splits, folder: Path, name: str = STEM
) -> Evaluation | None:
    """Return the predictions and figures of the test split on the first process; None on others and without the split.

    Every process answers its share. Predictions are appended to files in the run folder until `remove_unfinished`
    removes them, so that a resumed run continues the evaluation if it has the same model.

    Args:
        config: The config of the run.
        bundle: The model.
        splits: The splits.
        folder: The run folder.
        name: Name of the evaluation, for its files.
    """
    if "test" not in splits:
        return None
    with sharing_restored(bundle):
        return _evaluate(config, bundle, splits, folder, name)


def _evaluate(config: RunConfig, bundle: Bundle, splits: Splits, folder: Path, name: str) -> Evaluation | None:
    """Evaluate the test split; see `evaluate_test_split`."""
    state, skip = PartialState(), config.data_args.on_error == "skip"
    bundle.model.to(state.device)  # before training the model may be in host memory
    answerer = answers_of_model(config, config.model_args, bundle, splits["test"])
    fingerprint = answerer.fingerprint() | data_fingerprint(config, splits, "test")
    files = UnfinishedPredictions(folder, fingerprint, state.process_index, name)
    if state.is_main_process and (difference := files.difference()):
        logger.info("the evaluation of the test split starts anew, because its %s differs", difference)
        files.remove()
    state.wait_for_everyone()
    if not files.open():
        raise ConfigError(f"another command writes to {files.path}: wait for it or end it")
    try:
        groups = question_groups(answerer, splits["test"])
        continued = answer_split(answerer, splits["test"], files, skip, groups=groups)
        if not state.is_main_process:
            return None
        if continued:
            logger.info("the evaluation of the test split was continued: %d rows had answers", continued)
        metrics = find_metrics(config.data_args.metrics)
        evaluation = score_split(splits["test"], files, metrics, skip, continued)
        return add_strata(evaluation, splits["test"], metrics, parse_columns(config))
    finally:
        files.close()


@dataclass
class Exports:
    """Folders that a run exported its model to, in the order of their creation."""

    folders: list[Path] = field(default_factory=list)
    former: list[Path] = field(default_factory=list)
    """Exports of the same model from before a resume that the run did not write again."""
    refusal: UserError | None = None
    """Error of an export that was refused, raised at the end of the run; None: no export was refused."""


def export(config: RunConfig, bundle: Bundle, trainer: MultimodalTrainer, splits: Splits) -> Exports:
    """Export the adapter, and the merged model or the student, on the first process only.

    An export that is refused does not end the run: its error is in `Exports.refusal`.
    """
    exports, folder = Exports(), run_folder(trainer.args)
    if not trainer.is_world_process_zero():
        return exports
    record_skipped(trainer, splits)
    facts = run_facts(config, trainer, splits)
    write_facts(folder, facts)
    remove_former_results(folder)
    try:
        for exported in _write_exports(config, bundle, folder, facts):
            exports.folders.append(exported)
    except UserError as error:
        logger.warning("an export was refused, and the run goes on: %s", error)
        exports.refusal = error
    exports.former = former_exports(folder, exports.folders)
    return exports


def record_skipped(trainer: MultimodalTrainer, splits: Splits) -> None:
    """Add the rows that were skipped since the start to the reports of the splits, and write the lists of them."""
    folder = run_folder(trainer.args)
    splits.add_skipped(trainer.meter.failures.values())
    write_skipped(folder, trainer.meter.failures.values())
    write_summary(splits, folder)


def _write_exports(config: RunConfig, bundle: Bundle, folder: Path, facts: Facts) -> Iterator[Path]:
    """Write the exports that the config names below `folder`, and yield the folder of each after it was written."""
    if config.model_args.merge_lora and config.model_args.adapter_path:
        # A LoRA trained on merged weights does not fit the base that its config names.
        logger.info("merge_lora=True: the model is written to merged/ only; an adapter would not fit the base")
        yield EXPORTERS.find(MERGED)(bundle, folder / MERGED, facts=facts)
        return
    yield EXPORTERS.find(ADAPTER)(bundle, folder / ADAPTER, facts=facts)
    if not bundle.model.generates_text:
        yield EXPORTERS.find(STUDENT)(bundle, folder / STUDENT, facts=facts)
    elif config.export_args.merged:
        yield merge(str(folder / ADAPTER), folder / MERGED, overwrite=True)


def write_results(
    config: RunConfig,
    trainer: MultimodalTrainer,
    splits: Splits,
    exports: Exports,
    evaluation: Evaluation | None,
    untrained: Evaluation | None,
    changes: Figures,
) -> None:
    """Write the predictions and figures of the test split to the run folder and its exports."""
    if evaluation is None or not trainer.is_world_process_zero():
        return
    trainer.meter.skip("test", evaluation.failures)
    record_skipped(trainer, splits)
    folder, facts = run_folder(trainer.args), run_facts(config, trainer, splits)
    facts = replace(facts, figures=evaluation.figures)
    if untrained is not None:
        facts = replace(facts, untrained=untrained.figures, differences=changes)
    write_facts(folder, facts)
    write_metrics(folder, facts, evaluation.strata)
    for exported in exports.folders + exports.former:
        update_figures(exported, evaluation.figures)
    write_predictions(folder / PREDICTIONS, evaluation.rows)
    write_challenge_files(splits["test"], evaluation.predictions(), folder)
    if "measures" in evaluation.figures:
        draw_agreement(evaluation.rows, folder)
    for name in (STEM, UNTRAINED):  # last: without these files, the others are complete
        remove_unfinished(folder, name)


def write_untrained(folder: Path, evaluation: Evaluation | None) -> None:
    """Write predictions and figures of the model before the training, in the form of `mllm evaluate`."""
    if evaluation is None:
        return
    write_predictions(folder / UNTRAINED / PREDICTIONS, evaluation.rows)
    write_json(folder / UNTRAINED / METRICS, {"figures": evaluation.figures})


def changes_of(config: RunConfig, untrained: Evaluation | None, evaluation: Evaluation | None) -> Figures:
    """Return the paired differences of the figures after and before the training, with 95 % intervals by patient.

    They are those of the samples that both evaluations have; empty if there is only one evaluation.
    """
    if untrained is None or evaluation is None:
        return {}
    pairs = partial(_common_rows, untrained, evaluation)
    if next(pairs(), None) is None:
        return {}
    return figures_of_differences(paired_differences(find_metrics(config.data_args.metrics), pairs()))


def _common_rows(first: Evaluation, second: Evaluation) -> Iterator[tuple[Row, Row]]:
    """Yield the rows of each sample that two evaluations of a split have."""
    others = second.rows.numbered()
    following = iter(others)
    other, other_row = next(following, (math.inf, {}))
    for index, row in first.rows.numbered():
        while other < index:
            other, other_row = next(following, (math.inf, {}))
        if other == index:
            yield row, other_row


def log_results(
    config: RunConfig,
    trainer: MultimodalTrainer,
    evaluation: Evaluation | None,
    untrained: Evaluation | None,
    changes: Figures,
) -> None:
    """Log skipped rows, losses and figures, on the first process only."""
    if not trainer.is_world_process_zero():
        return
    meter, folder = trainer.meter, run_folder(trainer.args)
    if meter.truncated:
        logger.info("%d of %d samples were cut at max_length", meter.truncated, meter.samples)
    if meter.failures:
        logger.info("%d rows were skipped; %s lists them", len(meter.failures), folder / SKIPPED_ROWS)
    if idle := trainer.idle_steps:
        logger.warning(
            "%d of %d steps had no supervised item and made no update, but count in max_steps and in the schedule of "
            "the learning rate: correct or remove the rows that cannot be used, or raise max_steps",
            *(idle, trainer.state.global_step),
        )
    losses = [row["loss"] for row in rows_of(trainer.state) if "loss" in row]
    if losses:
        logger.info("training loss: %.4f at first, %.4f at last", losses[0], losses[-1])
    if memory := memory_facts(folder, trainer):
        logger.info(
            "peak memory of the training: %.2f GB; planned for samples of the greatest length: %.2f GB",
            *(float(memory[name] or 0) / 1e9 for name in ("measured", "planned")),
        )
    if evaluation is not None:
        for name, figures in evaluation.figures.items():
            before = untrained.figures.get(name) if untrained else None
            scored, rows = evaluation.scored[name], len(evaluation.rows)
            logger.info("%s", figures_line(name, figures, before, scored, rows, changes.get(name)))
        if evaluation.strata:
            logger.info("figures of the test split by stratum:\n%s", strata_table(evaluation.strata))
    if small := miniatures(config.data_args, runs_of(config.name) / MINIATURE):
        logger.warning(
            "%s: the run used generated miniatures (--tiny), and its figures describe these", ", ".join(small)
        )
    if (page := data_page_of(config.name)).is_file():
        logger.info("the data of this config are shown in %s", page)


def report(trainer: MultimodalTrainer, splits: Splits, exports: Exports, warnings: WarningLog) -> None:
    """Write `warnings.json` and `report.html`, and log the location of the results, on the first process only."""
    if not trainer.is_world_process_zero():
        return
    folder = run_folder(trainer.args)
    warnings.write(folder)
    names = [*(f"{exported.name}/" for exported in exports.folders[:1]), TRAINING_LOG, LOSS_PLOT, FIRST_BATCH]
    try:
        names.insert(0, write_report(folder, lambda: dict(splits)).name)
    except UserError as error:
        logger.warning("the report was not written, and everything else was: %s", error)
    logger.info("all results are in %s: %s", folder, ", ".join(names))
