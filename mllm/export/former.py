"""Exports and results of a run from before it was resumed."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from mllm.errors import ConfigError
from mllm.export.facts import Facts, read_facts
from mllm.export.folder import kind_of
from mllm.run_files import AGREEMENT_PLOT, METRICS, PREDICTIONS

logger = logging.getLogger(__name__)


def remove_former_results(run: Path) -> None:
    """Remove the predictions and figures of the test split from a run folder: they are those of an earlier model."""
    names = [name for name in (METRICS, PREDICTIONS, AGREEMENT_PLOT) if (run / name).is_file()]
    for name in names:
        (run / name).unlink()
    if names:
        logger.info("the run was resumed, so its former %s were removed", ", ".join(names))


def former_exports(run: Path, written: Collection[Path]) -> list[Path]:
    """Return the exports in a run folder that the run did not write again and that contain its present model.

    Warns about exports that contain an earlier model. Their facts and figures stay, because they belong to its weights.
    `run` contains the `facts.json` of the present model, `written` are the exports that the run wrote.
    """
    facts = read_facts(run)
    if facts is None:
        raise ConfigError(f"{run} has no facts.json: export the run again")
    exports = []
    for folder in sorted(path for path in run.iterdir() if path.is_dir() and path not in written):
        former = read_facts(folder)
        if former is None or kind_of(folder) is None:
            continue
        if _is_same_model(former, facts):
            exports.append(folder)
        else:
            logger.warning(
                "%s contains the model after %s updates with the former settings, and the run now has made %s: delete "
                "it, or export the run again",
                *(folder, former.updates, facts.updates),
            )
    return exports


def _is_same_model(former: Facts, facts: Facts) -> bool:
    """Return True if an export was written after the same updates with the same settings. A merge adds settings."""
    return (former.updates, former.data.get("train"), former.training) == (
        facts.updates,
        facts.data.get("train"),
        {**former.training, **facts.training},
    )
