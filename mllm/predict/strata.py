"""Columns of the rows of an evaluation, and its figures by their values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from mllm.config.schema import RunConfig
from mllm.dataset.base import SampleDataset
from mllm.dataset.checking import Splits
from mllm.dataset.tables.values import is_empty
from mllm.engine.answered_rows import Row, StoredFields
from mllm.engine.evaluation import Evaluation
from mllm.engine.strata import COLUMNS, FIELDS, Column, stratified
from mllm.errors import ConfigError, UserError, hint
from mllm.metrics.scoring import Entry
from mllm.private_messages import is_private

NAMED = 100
"""Number of rows whose columns a message about an unknown column may name."""


def parse_columns(config: RunConfig, names: Sequence[str] = ()) -> list[Column]:
    """Return the columns in `names`, or those of `data_args.strata` if `names` is empty."""
    return [Column.parse(text) for text in dict.fromkeys(names or config.data_args.columns)]


def strata_origin(config: RunConfig) -> str:
    """Return the location of the strata of a config for messages."""
    return f"{config.origin('data_args', 'strata')}: data_args.strata"


def check_columns(columns: Iterable[Column], split: str, splits: Splits, where: str) -> None:
    """Check that a row of the split has a value of each column.

    Args:
        columns: Columns.
        split: Name of the split.
        splits: The checked splits.
        where: Location of the columns for messages.

    Raises:
        ConfigError: No row has a value of a column, or a private run would write the values of a column.
    """
    dataset, tasks = splits[split], splits.reports[split].answers.tasks
    for column in columns:
        if is_private() and column.name not in FIELDS:
            raise ConfigError(
                f"{where}: the run is private, so its rows are written without '{column.name}': use modality or task"
            )
        if column.name == "task" and any(task is not None for task in tasks):
            continue
        if not any(column.name in fields for fields in _fields(dataset)):
            known = {name for fields in islice(_fields(dataset), NAMED) for name in fields}
            known = known & set(FIELDS) if is_private() else known
            known |= {"task"} if any(task is not None for task in tasks) else set()
            raise ConfigError(f"{where}: no row of {split} has a value of '{column.name}'{hint(column.name, known)}")


def add_strata(
    evaluation: Evaluation, dataset: SampleDataset, metrics: Mapping[str, Entry], columns: Sequence[Column]
) -> Evaluation:
    """Return an evaluation whose rows have their modality and the columns, with the figures by stratum."""
    names = [column.name for column in columns]
    stored = StoredFields(len(dataset))

    def added(index: int, row: Row) -> Row:
        fields = stored.get(index)
        if fields is None:
            fields = read(index)
            stored.add(index, fields)
        return fields

    def read(index: int) -> Row:
        fields = _fields_of(dataset, index)
        shows_modality = "modality" in fields and ("modality" in names or not is_private())
        values = {name: fields[name] for name in names if name in fields and name not in FIELDS}
        return ({"modality": fields["modality"]} if shows_modality else {}) | ({COLUMNS: values} if values else {})

    rows = evaluation.rows.with_fields(added)
    return replace(evaluation, rows=rows, strata=stratified(rows, metrics, columns))


def _fields(dataset: SampleDataset) -> Iterator[dict[str, Any]]:
    return (_fields_of(dataset, index) for index in range(len(dataset)))


def _fields_of(dataset: SampleDataset, index: int) -> dict[str, Any]:
    """Return the columns of a row with a text or a number, and its modality; empty for a row that cannot be read."""
    try:
        fields: dict[str, Any] = {**dataset.table_row(index), "modality": dataset.inspect(index).modality}
    except UserError:
        return {}  # the check of all rows, or the evaluation, reports it
    return {
        name: value for name, value in fields.items() if isinstance(value, str | int | float) and not is_empty(value)
    }
