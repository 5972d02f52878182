"""Evaluation of an adapter or a whole model on a split of a config."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mllm.config.hardware import environment
from mllm.config.schema import ModelArgs, RunConfig
from mllm.dataset.base import SampleDataset
from mllm.dataset.builder import open_datasets
from mllm.dataset.challenge import write_challenge_files
from mllm.dataset.checking import Splits
from mllm.engine.answering import Answerer, ModelAnswers, digest_of
from mllm.engine.evaluation import Evaluation, Samples, answer_split, score_split
from mllm.engine.process_group import end_processes, start_processes
from mllm.engine.unfinished import UnfinishedPredictions, unfinished_files
from mllm.errors import ConfigError, UserError, hint, with_advice
from mllm.export.saved_model import adapter_args, local_name, whole_model_args
from mllm.export.settings import WHOLE, encoding_settings, read_settings
from mllm.files import write_json
from mllm.metrics.scoring import Entry
from mllm.predict.drawings import draw_evaluation
from mllm.predict.load import best_hardware, load_for_answers
from mllm.predict.metrics import check_metrics, find_metrics, metric_origin
from mllm.predict.scales import CombinedRecords, RepeatedSamples, ScaledAnswers, check_scales, scales_of
from mllm.predict.server import ServerOptions, open_server
from mllm.predict.shared_images import question_groups, share_test_images
from mllm.predict.stored_features import store_test_features
from mllm.predict.strata import add_strata, check_columns, parse_columns, strata_origin
from mllm.predict.writer import write_predictions
from mllm.private_messages import call_privately, error_of, is_private
from mllm.protocols import Bundle
from mllm.registry import METRICS
from mllm.report.drawing import refuse_drawing
from mllm.report.figures import figures_table, strata_table
from mllm.report.run.page import write_report
from mllm.run_files import ADAPTER, CONFIG, PREDICTIONS, runs_of
from mllm.run_files import METRICS as METRICS_FILE

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
"""Splits of a config."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `evaluate`; one of `adapter`, `model` and `server` must be set."""

    config: str
    """Path of the config, for messages and `metrics.json`."""
    cfg_options: Sequence[str] = ()
    """Overrides of the config, for `metrics.json`."""
    adapter: str | None = None
    """An adapter folder, the run folder around it, or a name on the Hub."""
    model: str | None = None
    """A folder or a Hub name of a whole model."""
    base: str | None = None
    """The base model of `adapter`; None: the one that `adapter_config.json` names."""
    server: ServerOptions | None = None
    """A server that answers instead of a model in memory."""
    split: str = "test"
    metrics: Sequence[str] = ()
    """Names of metrics; empty: those of `data_args.compute_metric`."""
    by: Sequence[str] = ()
    """Columns by whose values the figures are divided; empty: those of `data_args.strata`."""
    draw: str | None = None
    """A folder for pictures of predicted and true boxes, points and masks; None: no pictures."""
    out: str | None = None
    """The output folder; None: `evaluation-SPLIT` in the run folder of the model."""


def evaluate(config: RunConfig, options: EvaluateOptions) -> None:
    """Generate an answer to every row of a split, write `predictions.jsonl` and `metrics.json`, print the figures.

    Raises `ConfigError` before the model is loaded if an option is invalid, and `DataError` if no row can be used.
    Messages of a private config have no values of rows.
    """
    call_privately(partial(_evaluate, config, options), config.privacy_args is not None)
    end_processes()


def _evaluate(config: RunConfig, options: EvaluateOptions) -> None:
    metrics = select_metrics(config, options.metrics)
    model_args = None if options.server else select_model(config, options)
    folder = output_folder(config, options)
    if options.draw:
        refuse_drawing(Path(options.draw), many=True)
    splits = open_split(config, options)
    where = "--metric" if options.metrics else metric_origin(config)
    if not splits[options.split].has_references:
        logger.warning("no metric is computed: the rows of '%s' have no answers", options.split)
        metrics = {}
    check_metrics(metrics, options.split, splits, where, config.data_args.gen_kwargs)
    columns = parse_columns(config, options.by)
    check_columns(columns, options.split, splits, "--by" if options.by else strata_origin(config))
    start_processes("cpu" if model_args is None else best_hardware().device)
    answerer, facts = _source(config, options, model_args, splits[options.split])
    files = open_files(folder, options, answerer.fingerprint() | data_fingerprint(config, splits, options.split))
    try:
        evaluation, seconds = _answer(config, options, splits, answerer, metrics, files)
        if evaluation is not None:
            evaluation = add_strata(evaluation, splits[options.split], metrics, columns)
            _write(config, facts, options, evaluation, seconds, splits, files)
    finally:
        files.close()


def _source(
    config: RunConfig, options: EvaluateOptions, model_args: ModelArgs | None, split: SampleDataset
) -> tuple[Answerer, dict[str, Any]]:
    """Return the source of the answers to a split, and the facts about it for `metrics.json`."""
    if model_args is None:
        assert options.server is not None
        served = open_server(options.server, config)
        return served, served.facts()
    hardware = best_hardware()

    def load(args: ModelArgs) -> ModelAnswers:
        return answers_of_model(config, args, load_for_answers(args, hardware), split, options.split)

    facts, scales = model_facts(model_args), scales_of(config)
    if not scales:
        return load(model_args), facts
    check_scales(scales, model_args)
    return ScaledAnswers(scales, len(split), lambda scale: load(replace(model_args, image_size=scale))), facts


def answers_of_model(
    config: RunConfig, args: ModelArgs, bundle: Bundle, split: SampleDataset, name: str = "test"
) -> ModelAnswers:
    """Return the answers of a loaded model with the options of a config, and fill its cache of features of a split."""
    store_test_features(config, bundle, split, name)
    share_test_images(config, bundle)
    return ModelAnswers(
        bundle,
        checks_prompts=config.data_args.on_error == "skip" or is_private(),
        settings=encoding_settings(asdict(args)),
        **config.data_args.gen_kwargs,
    )


def _answer(
    config: RunConfig,
    options: EvaluateOptions,
    splits: Splits,
    answerer: Answerer,
    metrics: Mapping[str, Entry],
    files: UnfinishedPredictions,
) -> tuple[Evaluation | None, float]:
    """Answer the rows of the split. Return their evaluation and the seconds; None on all processes but the first."""
    split, skip = splits[options.split], config.data_args.on_error == "skip"
    scales = scales_of(config)
    started = time.monotonic()
    questions: Samples = RepeatedSamples(split, len(scales)) if scales else split
    groups = question_groups(answerer, split, max(1, len(scales)))
    try:
        continued = answer_split(answerer, questions, files, skip, options.split, groups=groups)
    except UserError as error:
        if not (count := sum("row" in record for record in files.records())):
            raise
        kept = f"the {count:,} answers so far are kept" if count > 1 else "the answer so far is kept"
        raise with_advice(error, f"{kept} in {files.folder}: run the command again to continue") from error
    seconds = time.monotonic() - started
    if not PartialState().is_main_process:
        return None, seconds  # the first process removes the files after it has read them
    if continued:
        logger.info("the evaluation in %s was continued: %d rows had answers", files.folder, continued)
    choices = config.data_args.gen_kwargs.get("choices", ())
    records = CombinedRecords(files, scales, choices) if scales else files
    evaluation = score_split(split, records, metrics, skip, continued)
    if not len(evaluation.rows):
        files.remove()
        first = f"; first error: {evaluation.skipped[0]}" if evaluation.skipped else ""
        raise error_of(f"none of the {len(split)} rows of '{options.split}' can be used{first}")
    return evaluation, seconds


def _write(
    config: RunConfig,
    model: Mapping[str, Any],
    options: EvaluateOptions,
    evaluation: Evaluation,
    seconds: float,
    splits: Splits,
    files: UnfinishedPredictions,
) -> None:
    """Write the predictions and figures to the folder of `files`, remove these, and print the figures."""
    folder = files.folder
    if options.draw:
        evaluation = draw_evaluation(evaluation, splits[options.split], Path(options.draw))
    write_predictions(folder / PREDICTIONS, evaluation.rows)
    write_challenge_files(splits[options.split], evaluation.predictions(), folder)
    write_json(folder / METRICS_FILE, summary(config, model, options, evaluation, seconds))
    print(figures_table(evaluation.figures, evaluation.scored, len(evaluation.rows)))
    if evaluation.strata:
        print(f"\n{strata_table(evaluation.strata)}")
    for message in evaluation.skipped:
        logger.warning("skipped %s", message)
    report = write_report(folder, lambda: dict(splits))
    files.remove()  # last: without these files, the others are complete, and the folder is not continued
    logger.info("%d predictions written to %s; %d rows skipped", len(evaluation.rows), folder, len(evaluation.skipped))
    logger.info("the report is %s", report)


def open_split(config: RunConfig, options: EvaluateOptions) -> Splits:
    """Return the checked dataset of the split alone; the data of other splits may be absent."""
    others: dict[str, Any] = {name: None for name in SPLITS if name != options.split}
    args, training = replace(config.data_args, **others), config.training_args
    workers = training["dataloader_num_workers"]
    splits = open_datasets(args, seed=training["seed"], origin=config.origin, workers=workers)
    if options.split not in splits:
        raise ConfigError(
            f"{options.config}: data_args.{options.split} is not set, so there is no split '{options.split}' to "
            "evaluate: add it, or choose another one with --split"
        )
    return splits


def select_metrics(config: RunConfig, names: Sequence[str]) -> dict[str, Any]:
    """Return the metrics in `names`, or those of the config if `names` is empty.

    Raises `ConfigError` for unknown names and if neither names a metric.
    """
    names = list(dict.fromkeys(names or config.data_args.metrics))
    if not names:
        known = ", ".join(METRICS.names())
        raise ConfigError(f"the config names no metric in data_args.compute_metric: add --metric NAME, one of {known}")
    for name in names:
        if name not in METRICS.names():
            raise ConfigError(f"unknown metric '{name}'{hint(name, METRICS.names())}")
    return find_metrics(names)


def select_model(config: RunConfig, options: EvaluateOptions) -> ModelArgs:
    """Return the `model_args` of the adapter or the whole model.

    The encoding settings are those of `mllm.json` in the folder of the model, or else those of the config. Weights are
    loaded in 4 or 8 bits if the config sets `load_in_4bit` or `load_in_8bit`.
    """
    quantization = {key: vars(config.model_args)[key] or None for key in ("load_in_4bit", "load_in_8bit")}
    if options.adapter:
        return adapter_args(options.adapter, options.base, **quantization)
    assert options.model is not None
    if read_settings(local_name(options.model)):
        return whole_model_args(options.model, **quantization)
    whole_model_args(options.model, type=config.model_args.type)  # raises `ConfigError` for the folder of an adapter
    changes: dict[str, Any] = dict(
        model_name_or_path=local_name(options.model), adapter_path=None, merge_lora=False, lora_r=None, **WHOLE
    )
    return replace(config.model_args, **changes)


def output_folder(config: RunConfig, options: EvaluateOptions) -> Path:
    """Return the output folder: `options.out`, or `evaluation-SPLIT`, which `open_files` numbers.

    The default is in the run folder around the adapter or the merged model, or in `exp/<config name>/` for other
    models. Raises `ConfigError` if `options.out` exists, is not empty and contains no unfinished evaluation.
    """
    if options.out:
        folder = Path(options.out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not unfinished_files(folder):
            raise ConfigError(f"--out {folder} exists and is not an empty folder; remove it or choose another name")
        return folder
    source = Path(str(options.adapter or options.model))
    if options.server:
        return runs_of(config.name) / f"evaluation-{options.split}"
    if (source / ADAPTER).is_dir():
        run = source.resolve()
    elif source.is_dir() and (options.adapter or (source.resolve().parent / CONFIG).is_file()):
        run = source.resolve().parent
    else:
        run = runs_of(config.name)
    return run / f"evaluation-{options.split}"


def open_files(folder: Path, options: EvaluateOptions, fingerprint: Mapping[str, str]) -> UnfinishedPredictions:
    """Return the open files of this process in the output folder.

    Without `options.out` this is the first of `folder`, `folder-2`, ... that does not exist, or that contains an
    unfinished evaluation of the same model, data and options, to which no other command writes.

    Raises:
        ConfigError: `options.out` contains an unfinished evaluation that this one cannot continue.
    """
    state = PartialState()
    chosen: list[Any] = [None]
    files: UnfinishedPredictions | None = None
    if state.is_main_process:
        files = _open_out(folder, fingerprint) if options.out else _open_free(folder, fingerprint)
        chosen = [files.folder]
    if state.num_processes > 1:
        broadcast_object_list(chosen)
    if files is None:
        files = UnfinishedPredictions(chosen[0], fingerprint, state.process_index)
        if not files.open():
            raise ConfigError(f"another command writes to {files.path}: wait for it or end it")
    return files


def _open_out(folder: Path, fingerprint: Mapping[str, str]) -> UnfinishedPredictions:
    """Return the open file of the first process in a folder that the command line names."""
    files = UnfinishedPredictions(folder, fingerprint)
    if difference := files.difference():
        raise ConfigError(
            f"--out {folder} contains an unfinished evaluation whose {difference} differs: choose another folder to "
            "begin a new one, or restore what has changed to continue it"
        )
    if not files.open():
        raise ConfigError(f"another command evaluates into {folder}: wait for it or end it, or choose another folder")
    return files


def _open_free(folder: Path, fingerprint: Mapping[str, str]) -> UnfinishedPredictions:
    """Return the open file of the first process in the first of the numbered folders that can be used."""
    for number in count(1):
        files = UnfinishedPredictions(folder if number == 1 else Path(f"{folder}-{number}"), fingerprint)
        is_free = not files.folder.exists()
        if (is_free or (unfinished_files(files.folder) and files.difference() is None)) and files.open():
            return files
        if unfinished_files(files.folder):
            logger.warning(
                "%s contains an unfinished evaluation that differs or is still running: it is left unchanged",
                files.folder,
            )
    raise AssertionError


def data_fingerprint(config: RunConfig, splits: Splits, split: str) -> dict[str, str]:
    """Return a digest of the contents of a split and of the options of its dataset."""
    options = sorted(asdict(config.data_args)[split].items())
    return {f"data_args.{split}": digest_of([splits.reports[split].content, options])}


def summary(
    config: RunConfig, model: Mapping[str, Any], options: EvaluateOptions, evaluation: Evaluation, seconds: float
) -> dict[str, Any]:
    """Return the contents of `metrics.json`: figures, counts of rows, and everything that the figures depend on.

    `model` has the facts about the model or the server. Those of a private config have no options of the data and no
    values of overrides, which may be paths of the data.
    """
    settings = asdict(config.data_args)
    data, overrides = settings[options.split], list(options.cfg_options)
    if config.privacy_args is not None:
        data = {"type": data["type"]}
        overrides = [override.partition("=")[0] for override in overrides]
    return {
        "figures": evaluation.figures,
        **({"strata": evaluation.strata} if evaluation.strata else {}),
        "counts": {
            "answers": len(evaluation.rows),
            "skipped": len(evaluation.skipped),
            "unreadable": evaluation.unreadable,
            "tokens": evaluation.tokens,
            **({"continued": evaluation.continued} if evaluation.continued else {}),
        },
        "skipped": evaluation.skipped,
        "seconds": round(seconds, 1),
        "settings": {
            "config": options.config,
            "cfg_options": overrides,
            "tiny": config.tiny,
            "private": config.privacy_args is not None,
            "split": options.split,
            "data": data,
            "gen_kwargs": settings["gen_kwargs"],
            "on_error": settings["on_error"],
        },
        **model,
        "environment": environment(),
    }


def model_facts(args: ModelArgs) -> dict[str, Any]:
    """Return the `model_args` of a model and the digests of the files of its adapter, for `metrics.json`."""
    weights = [] if args.adapter_path is None else sorted(Path(args.adapter_path).glob("*.safetensors"))
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in weights}
    return {"model": asdict(args), "adapter_sha256": digests}
