"""Files of a run folder, or of the output folder of an evaluation, that a report shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mllm.engine.predictions import Predictions, read_predictions
from mllm.engine.run_log import read_skipped
from mllm.errors import ConfigError
from mllm.export.facts import Facts, read_facts
from mllm.run_files import (
    CONFIG,
    DATA_SUMMARY,
    ENVIRONMENT,
    FACTS,
    METRICS,
    PREDICTIONS,
    PRIVACY,
    TRAINING_LOG,
    WARNINGS,
)

T = TypeVar("T")
Json = dict[str, Any]
_RESULTS = (FACTS, METRICS, TRAINING_LOG)
"""Files of which a report shows at least one."""
_PRIVATE_CONFIG = "\nprivacy_args = dict("


@dataclass(frozen=True)
class RunFiles:
    """Contents of the files of a folder. An absent or damaged file has an empty value here."""

    folder: Path
    facts: Facts | None = None
    metrics: Json = field(default_factory=dict)
    """`metrics.json`; that of an evaluation also has `settings`, `counts`, `seconds`, `model` and `environment`."""
    predictions: Sequence[Json] = ()
    """Rows of `predictions.jsonl`, read again for each pass. Empty for a private run: a report shows none of them."""
    log: list[Json] = field(default_factory=list)
    """Rows of `training_log.json`."""
    data: dict[str, Json] = field(default_factory=dict)
    """Split -> counts of `data_summary.json`."""
    environment: Json = field(default_factory=dict)
    config: str = ""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Split and message of each row of `skipped_rows.txt`."""
    warnings: list[str] = field(default_factory=list)
    """Warnings that the run logged."""
    is_private: bool = False
    """True for a run with differential privacy, and for an evaluation of its config."""
    problems: dict[str, str] = field(default_factory=dict)
    """Name of a file that is absent or cannot be read -> sentence about it."""

    @property
    def fields(self) -> Collection[str]:
        """Return the names of the fields that rows of `predictions` have."""
        return self.predictions.fields if isinstance(self.predictions, Predictions) else ()

    @property
    def is_evaluation(self) -> bool:
        """Return True for the output folder of `mllm evaluate`."""
        return isinstance(self.metrics.get("settings"), dict)

    @property
    def figures(self) -> Mapping[str, Mapping[str, Any]]:
        """Return metric -> figure -> value of the evaluated split, as `metrics.json` has them."""
        figures = self.metrics.get("figures")
        known = figures if isinstance(figures, dict) else {}
        return {name: values for name, values in known.items() if isinstance(values, dict)}

    @property
    def split(self) -> str:
        """Return the name of the evaluated split."""
        return str(self.metrics["settings"].get("split", "test")) if self.is_evaluation else "test"


def read_run(folder: Path) -> RunFiles:
    """Read the files of a run folder or of the output folder of an evaluation.

    Raises:
        ConfigError: The folder does not exist, or has no file that a report could show.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: name a run folder, such as exp/my_run/latest")
    problems: dict[str, str] = {}

    def read(name: str, parse: Callable[[Path], T], default: T) -> T:
        return _read(folder / name, parse, default, problems)

    nothing: Json = {}
    facts = read(FACTS, lambda path: read_facts(path.parent), None)
    metrics = read(METRICS, _object, nothing)
    log: list[Json] = read(TRAINING_LOG, _log_rows, list[Json]())
    if not facts and not metrics and not log:
        raise ConfigError(_no_results(folder, problems))
    environment = metrics.get("environment") or read(ENVIRONMENT, _object, nothing)
    config = read(CONFIG, lambda path: path.read_text(encoding="utf-8"), "")
    is_private = _is_private(folder, facts, metrics, config)
    no_rows: Sequence[Json] = ()
    predictions = no_rows if is_private else read(PREDICTIONS, read_predictions, no_rows)
    return RunFiles(
        folder,
        facts,
        metrics,
        predictions,
        log,
        read(DATA_SUMMARY, _object, nothing),
        environment if isinstance(environment, dict) else {},
        config,
        [(split, failure.message) for split, failure in read_skipped(folder)],
        read(WARNINGS, _texts, list[str]()),
        is_private,
        problems,
    )


def _read(path: Path, parse: Callable[[Path], T], default: T, problems: dict[str, str]) -> T:
    """Return the contents of a file; `default` and an entry of `problems` if it is absent or damaged."""
    if not path.is_file():
        problems[path.name] = f"{path.name} is absent."
        return default
    try:
        return parse(path)
    except (ConfigError, OSError, ValueError, KeyError, TypeError) as error:
        problems[path.name] = f"{path.name} is damaged and left out ({error})."
        return default


def _object(path: Path) -> Json:
    """Return the object of a JSON file."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _log_rows(path: Path) -> list[Json]:
    """Return the rows of `training_log.json`."""
    rows = _object(path)["rows"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "step" in row for row in rows):
        raise ValueError("its rows have no step")
    return rows


def _texts(path: Path) -> list[str]:
    """Return the texts of `warnings.json`."""
    return [str(text) for text in _object(path)["warnings"]]


def _is_private(folder: Path, facts: Facts | None, metrics: Json, config: str) -> bool:
    """Return True if any file of the folder, or of the run folder around an evaluation, is that of a private run."""
    settings = metrics.get("settings")
    is_marked = isinstance(settings, dict) and bool(settings.get("private"))
    is_recorded = facts is not None and (facts.privacy is not None or any(part.privacy for part in facts.adapters))
    is_inside = any((place / PRIVACY).exists() for place in (folder, folder.resolve().parent))
    return is_marked or is_recorded or is_inside or _PRIVATE_CONFIG in f"\n{config}"


def _no_results(folder: Path, problems: Mapping[str, str]) -> str:
    damaged = [text for name, text in problems.items() if name in _RESULTS and (folder / name).exists()]
    if damaged:
        return f"{folder} has nothing that a report could show: {' '.join(damaged)} Evaluate or train the run again"
    names = ", ".join(_RESULTS)
    return (
        f"{folder} has none of {names}: name a run folder, such as exp/my_run/latest, or an output folder of mllm "
        "evaluate"
    )
