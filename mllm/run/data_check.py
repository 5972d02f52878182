"""Check of all rows and images of a config, and the page about them, without loading weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mllm.config.schema import RunConfig
from mllm.dataset.builder import build_datasets
from mllm.dataset.readers.notices import unlogged
from mllm.errors import UserError
from mllm.models.builder.builder import load_encoder
from mllm.private_messages import call_privately, is_private
from mllm.protocols import Encoder
from mllm.registry import READERS
from mllm.report.data.facts import MAX_CHARACTERS, VERSION, RowFacts, SourceRow, Store, all_facts
from mllm.report.data.findings import Finding, findings, split_findings
from mllm.report.data.page import Picture, picture, write_data_page
from mllm.report.drawing import draw_marks, numbered
from mllm.report.html_page import shortened
from mllm.run.prepare import prepare_args
from mllm.run_files import DATA_ROWS, data_page_of

EXAMPLES = 12
"""Maximum number of examples of a split on the page."""


@dataclass(frozen=True)
class DataCheck:
    """Result of the check."""

    page: Path
    rows: int
    findings: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        """Return the findings that would stop the training or make a metric wrong."""
        return [finding for finding in self.findings if finding.is_error]


def check_data(path: str, overrides: Sequence[str] = (), *, tiny: bool = False, workers: int = 0) -> DataCheck:
    """Read every row and decode every image of all splits of a config, and write `exp/<config name>/data/data.html`.

    Facts of rows are stored in `rows.jsonl` next to the page. A second call decodes only new and changed rows, and a
    killed call continues.

    Args:
        path: A config file.
        overrides: `KEY=VALUE` for keys of the config.
        tiny: Replace checkpoints and absent data by tiny ones.
        workers: Number of worker processes; 0: the rows are read in this process.

    Raises:
        ConfigError: The config is invalid.
        DataError: A table cannot be read.
    """
    config, _ = prepare_args(path, overrides, tiny=tiny, loads_model=True)
    return call_privately(partial(_check, config, workers), config.privacy_args is not None)


def _check(config: RunConfig, workers: int) -> DataCheck:
    splits = build_datasets(config.data_args, seed=config.training_args["seed"], origin=config.origin)
    encoder, notes = _encoder(config)
    page = data_page_of(config.name)
    store = None if is_private() else Store(page.with_name(DATA_ROWS), _settings(config, encoder is not None))
    sources = {name: list(dataset.rows()) for name, dataset in splits.items()}
    rows: dict[str, list[RowFacts]] = {name: [] for name in splits}
    total = sum(map(len, sources.values()))
    for facts in tqdm(all_facts(sources, encoder, store, workers), "reading rows", total, unit="row", disable=None):
        rows[facts.split].append(facts)
    max_length = None if encoder is None else config.model_args.max_length
    results = findings(rows, max_length, tuple(READERS.names()))
    sheets: dict[str, list[Picture]] = {}
    if is_private():
        notes.append("The config is private: the page has no images, questions or answers, and facts are not stored.")
    else:
        sheets = {name: _sheet(sources[name], rows[name], encoder) for name in splits}
    counts = [split_findings(name, rows[name], _summaries(sources[name])) for name in splits]
    write_data_page(page, config.name, counts, results, sheets, notes, max_length)
    return DataCheck(page, total, results)


def _encoder(config: RunConfig) -> tuple[Encoder | None, list[str]]:
    """Return the encoder of the model and no notes; without its checkpoint None and a sentence about it."""
    try:
        return load_encoder(config.model_args), []
    except UserError as error:
        return None, [f"Lengths are unknown, and boxes are drawn as the rows have them: {error}."]


def _summaries(rows: Sequence[SourceRow]) -> list[str]:
    """Return the summary of each source dataset of a split as text; an empty list in a private run.

    Summaries have paths, which may name patients.
    """
    if is_private():
        return []
    sources = {id(source): source for source, _ in rows}
    summaries = [source.summary() for source in sources.values()]
    return [", ".join(f"{key}: {_plain(value)}" for key, value in summary.items()) for summary in summaries if summary]


def _plain(value: Any) -> str:
    """Return the text of a value of a summary; counts in a dict as `name 3, other name 4`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(count)}" for name, count in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _settings(config: RunConfig, has_encoder: bool) -> str:
    """Return a digest of all settings on which the facts of a row depend. Without an encoder lengths are unknown."""
    settings = repr((VERSION, config.model_args, config.data_args, has_encoder))
    return hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()


def _sheet(sources: Sequence[SourceRow], rows: Sequence[RowFacts], encoder: Encoder | None) -> list[Picture]:
    """Return pictures of evenly spaced usable rows with images, with the marks of the answer drawn."""
    usable = [row for row in rows if not row.error and row.images]
    count = min(EXAMPLES, len(usable))
    pictures = []
    for row in (usable[number * len(usable) // count] for number in range(count)):
        source, index = sources[row.number]
        with unlogged():
            sample = source.plain(index)
        reference = None if encoder is None else encoder.reference(sample)
        marks = reference.marks if reference is not None and reference.marks else sample.marks
        answer = shortened(reference.text, MAX_CHARACTERS) if reference is not None and reference.text else row.answer
        in_first = [mark for mark in marks if mark.image == 0]
        image = draw_marks(sample.images[0], numbered(in_first)) if in_first else sample.images[0]
        pictures.append(picture(image, row.location, row.question, answer, len(in_first)))
    return pictures
