"""The page `report.html` of a run folder or of the output folder of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mllm.report.html_page import write_page
from mllm.report.run import about, results, training
from mllm.report.run.blocks import Section
from mllm.report.run.inputs import RunFiles, read_run
from mllm.report.run.pictures import OpenSplits, Pictures
from mllm.report.run.summary import summary
from mllm.run_files import REPORT_PAGE

SECTIONS: tuple[Callable[[RunFiles, Pictures], Section | None], ...] = (
    summary,
    results.metrics,
    results.change,
    results.strata,
    results.classes,
    results.probabilities,
    results.numbers,
    results.masks,
    results.boxes,
    training.curves,
    results.predictions,
    about.trained,
    about.data,
    about.privacy,
    training.speed,
    about.warnings,
    about.environment,
    about.config,
)
"""Sections in their order. A function returns None if its section does not apply."""


def write_report(folder: Path, open_splits: OpenSplits) -> Path:
    """Write `report.html` to a run folder or the output folder of an evaluation, and return its path.

    Args:
        folder: The folder.
        open_splits: Function that opens the data for pictures; it is not called for a private run.

    Raises:
        ConfigError: The folder has no file that a report could show, or the page cannot be written.
    """
    run = read_run(folder)
    pictures = Pictures(dict if run.is_private else open_splits)
    sections = [section for build in SECTIONS if (section := build(run, pictures)) is not None]
    kind = f"evaluation of '{run.split}'" if run.is_evaluation else "training run"
    path = folder / REPORT_PAGE
    write_page(path, "report.html", name=_name(folder), kind=kind, sections=sections)
    return path


def _name(folder: Path) -> str:
    """Return the name of a run: its folder below that of its config, without `exp`."""
    parts = folder.resolve().parts
    return "/".join(parts[-3:] if "evaluation" in parts[-1] else parts[-2:])
