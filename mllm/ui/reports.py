"""Reports of runs that the page shows."""

from __future__ import annotations

from pathlib import Path

from mllm.errors import ConfigError
from mllm.report.run.inputs import read_run
from mllm.run.report import rewrite_report
from mllm.run_files import LATEST, REPORT_PAGE, RUNS


def runs_with_reports(folder: Path = RUNS) -> list[str]:
    """Return the folders of runs and evaluations below a folder that have a report, the newest first."""
    files = [file for pattern in ("*/*/", "*/*/*/") for file in folder.glob(f"{pattern}{REPORT_PAGE}")]
    pages = [file for file in files if LATEST not in file.parts]
    return [str(page.parent) for page in sorted(pages, key=lambda page: page.stat().st_mtime, reverse=True)]


def report_of(run: str) -> Path:
    """Return the report of a run folder or of the output folder of an evaluation. It is written if it is absent.

    Raises:
        ConfigError: The folder does not exist or is not that of a run.
    """
    if not run.strip():
        raise ConfigError("no run is selected: select one, or write its folder")
    folder = Path(run.strip())
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist: write the folder of a run, such as {RUNS / 'my_run' / LATEST}")
    read_run(folder)
    page = folder / REPORT_PAGE
    return page if page.is_file() else rewrite_report(folder)
