"""Metrics of a split by name, and the check that its rows have the contents that the metrics read."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mllm.config.schema import RunConfig
from mllm.dataset.answer_counts import MAX_TEXTS, AnswerCounts
from mllm.dataset.base import SampleDataset
from mllm.dataset.checking import Splits
from mllm.engine.answering import OPTIONS
from mllm.errors import ConfigError, UserError
from mllm.metrics.base import REQUIRED, Reads, content_read
from mllm.metrics.chexpert import NO_FINDING, labels_of
from mllm.metrics.scoring import Entry, needs_scores, require, tasks_of
from mllm.registry import METRICS

logger = logging.getLogger(__name__)

SAMPLED = 16
"""Number of rows that are read for their contents if the class does not return these without decoding images."""


def find_metrics(names: Iterable[str]) -> dict[str, Entry]:
    """Return the entries of METRICS with these names."""
    return {name: METRICS.find(name) for name in names}


def metric_origin(config: RunConfig) -> str:
    """Return the location of the metrics of a config for messages."""
    return f"{config.origin('data_args', 'compute_metric')}: data_args.compute_metric"


def check_metrics(
    names: Iterable[str], split: str, splits: Splits, where: str, gen_kwargs: Mapping[str, Any] | None = None
) -> None:
    """Check that the rows of a split have the contents that metrics read. Metrics without a declaration are accepted.

    The number of rows that have the content is logged if it is not all of them.

    Args:
        names: Names of metrics.
        split: Name of the split.
        splits: The checked splits.
        where: Location of the names for messages: `FILE:LINE` or an option of the command line.
        gen_kwargs: Options of the answers, which say whether options are scored.

    Raises:
        ConfigError: No row has the content that a metric reads, or a package or program of a metric is not installed.
    """
    counts = splits.reports[split].answers
    for name in names:
        entry = METRICS.find(name)
        content, tasks = content_read(entry), tasks_of(entry)
        require(entry)
        if needs_scores(entry) and (gen_kwargs or {}).get("scoring") != OPTIONS:
            raise ConfigError(
                f"{where}: metric '{name}' needs the probabilities of options: set "
                f"data_args.gen_kwargs.scoring='{OPTIONS}', which compares the likelihoods of the options of a question"
            )
        if tasks and None not in counts.tasks and not tasks & counts.tasks.keys():
            logger.warning(
                "metric '%s' has no figures: no row of %s has its task (%s)", name, split, ", ".join(sorted(tasks))
            )
            continue
        if content is None:
            continue
        count = _rows_with(content, counts, tasks)
        if count == 0:
            _refuse_or_warn(name, content, split, splits, where)
        elif count < counts.rows and not counts.unknown and content not in ("choices", "findings"):
            logger.warning(
                "metric '%s': %d of the %d rows of %s have %s, with which it compares predictions",
                *(name, count, counts.rows, split, REQUIRED[content]),
            )


def _rows_with(content: Reads, counts: AnswerCounts, tasks: Collection[str] = ()) -> int:
    """Return the number of rows with a content; for findings the number of different answers of some tasks."""
    if content == "choices":
        return counts.choices
    if content == "findings":
        return sum(
            bool(labels_of(text) - {NO_FINDING})
            for task, text in counts.texts
            if task is None or not tasks or task in tasks
        )
    return counts.contents[content]


def _refuse_or_warn(name: str, content: Reads, split: str, splits: Splits, where: str) -> None:
    """Raise `ConfigError` if no row has a content; log a warning if only a sample of the rows could be read."""
    counts = splits.reports[split].answers
    sampled = _sampled_answers(splits[split]) if counts.unknown else counts
    if counts.unknown and (sampled.rows == 0 or _rows_with(content, sampled) > 0):
        return
    if content == "findings" and len(sampled.texts) == MAX_TEXTS:
        logger.warning(
            "metric '%s' may have nothing to compare: none of the first %d different answers of %s has %s",
            *(name, MAX_TEXTS, split, REQUIRED[content]),
        )
        return
    if counts.unknown and sampled.rows < len(splits[split]):
        logger.warning(
            "metric '%s' may have nothing to compare: none of %d sampled rows of %s has %s",
            *(name, sampled.rows, split, REQUIRED[content]),
        )
        return
    applicable = [metric for metric in METRICS.names() if metric != name and _applies(metric, sampled)]
    fix = f"metrics that apply are {', '.join(applicable)}" if applicable else "no other metric applies to these rows"
    raise ConfigError(
        f"{where}: metric '{name}' cannot be computed, because none of the {counts.rows:,} rows of {split} has "
        f"{REQUIRED[content]}; {fix}"
    )


def _applies(name: str, counts: AnswerCounts) -> bool:
    """Return True if a metric declares no content, or some row has it."""
    content = content_read(METRICS.find(name))
    return content is None or _rows_with(content, counts) > 0


def _sampled_answers(dataset: SampleDataset) -> AnswerCounts:
    """Return the counts of the answers of evenly spaced rows."""
    counts, count = AnswerCounts(), min(len(dataset), SAMPLED)
    for number in range(count):
        try:
            counts.add(dataset.sample(number * len(dataset) // count))
        except UserError:
            continue  # the check of all rows, or the evaluation, reports it
    return counts
