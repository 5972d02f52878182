"""Sections about the results: metrics, charts of the answers, and the gallery of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm.report.figures import INTERVAL
from mllm.report.run.answers import StructureRow, agreements, box_table, confusion, mask_table, probability_charts
from mllm.report.run.blocks import Block, Cards, Cell, Charts, Columns, Example, Examples, Section, Table, Text, number
from mllm.report.run.gallery import MAX_CARDS, Card, gallery
from mllm.report.run.inputs import RunFiles
from mllm.report.run.pictures import Pictures
from mllm.report.run.scores import score_rows
from mllm.run_files import METRICS, PREDICTIONS

NO_TEST_SPLIT = "The config has no test split, so nothing was evaluated."
METRIC_COLUMNS = ("figure", "value", "95 % from", "to")


def metrics(run: RunFiles, pictures: Pictures) -> Section:
    """Return the section with all figures of `metrics.json` and their 95 % intervals."""
    if not run.figures:
        text = NO_TEST_SPLIT if _has_no_test_split(run) else run.problems.get(METRICS, "There are no figures.")
        return Section("metrics", "Metrics", [Text(text)])
    tables = [Table(METRIC_COLUMNS, figure_rows(figures), name) for name, figures in run.figures.items() if figures]
    intervals = "Intervals are percentiles of a bootstrap over patients; a sample without a patient counts as one."
    return Section("metrics", f"Metrics of the split '{run.split}'", [Columns(tables), Text(intervals, is_muted=True)])


def _has_no_test_split(run: RunFiles) -> bool:
    """Return True for a training run without a test split, which has no metrics and no predictions."""
    return run.facts is not None and not run.is_evaluation and "test" not in run.facts.data


def figure_rows(figures: Mapping[str, Any]) -> list[list[Cell]]:
    """Return the rows of a table of figures: name, value, and the limits of the interval."""
    rows = []
    for name, value in figures.items():
        if name.endswith(INTERVAL):
            continue
        limits = [figures[name + end] for end in INTERVAL if name + end in figures]
        rows.append([Cell(name), number(value), *([number(limit) for limit in limits] or [Cell(""), Cell("")])])
    return rows


def change(run: RunFiles, pictures: Pictures) -> Section | None:
    """Return the section with the figures before and after the training; None if the former were not computed."""
    before, differences = run.metrics.get("untrained"), run.metrics.get("differences")
    if not isinstance(before, dict) or not isinstance(differences, dict):
        return None
    tables = []
    for metric, changes in differences.items():
        own, former = run.figures.get(metric, {}), before.get(metric, {})
        names = [name for name in changes if not name.endswith(INTERVAL)]
        rows = [
            [Cell(name), number(former.get(name)), number(own.get(name)), *_with_limits(changes, name)]
            for name in names
        ]
        tables.append(Table(("figure", "before", "after", "difference", "95 % from", "to"), rows, f"{metric}, change"))
    return Section("change", "Before and after the training", [Columns(tables)]) if tables else None


def strata(run: RunFiles, pictures: Pictures) -> Section | None:
    """Return the section with the figures of `metrics.json` by stratum; None without strata and for a private run."""
    parts = run.metrics.get("strata")
    if not isinstance(parts, dict) or run.is_private:
        return None
    tables = []
    for column, values in parts.items():
        names = dict.fromkeys(
            (metric, next(iter(figures)))
            for part in values.values()
            for metric, figures in part["figures"].items()
            if figures
        )
        head = [
            title
            for metric, figure in names
            for title in (figure if figure == metric else f"{metric}: {figure}", "95 % from", "to")
        ]
        rows = [
            [
                Cell(value),
                number(part["samples"]),
                number(part["patients"]) if part["patients"] is not None else Cell("unknown", is_number=True),
                *(cell for metric, figure in names for cell in _with_limits(part["figures"].get(metric, {}), figure)),
            ]
            for value, part in values.items()
        ]
        tables.append(Table((column, "samples", "patients", *head), rows, f"By {column}"))
    return Section("strata", "Figures by stratum", tables)


def _with_limits(figures: Mapping[str, Any], figure: str) -> list[Cell]:
    """Return the cells of a figure: value, and the limits of its interval, which may be absent."""
    names = (figure, *(figure + end for end in INTERVAL))
    return [number(figures[name]) if name in figures else Cell("", is_number=True) for name in names]


def classes(run: RunFiles, pictures: Pictures) -> Section | None:
    """Return the section with the confusion matrix; None without a metric of classes."""
    matrix, note = confusion(run.predictions, run.figures)
    if matrix is None:
        return Section("classes", "Classes", [Text(note)]) if note else None
    rows = [
        [Cell(name), *(_counted(count, matrix.shade(i, j)) for j, count in enumerate(matrix.counts[i]))]
        for i, name in enumerate(matrix.classes)
    ]
    text = f"Rows are references, columns are answers: {matrix.total:,} samples, as '{matrix.metric}' reads them."
    return Section("classes", "Confusion matrix", [Text(text), Table(("reference", *matrix.columns), rows)])


def _counted(count: int, shade: int) -> Cell:
    return Cell(f"{count:,}", count, is_number=True, shade=shade)


def probabilities(run: RunFiles, pictures: Pictures) -> Section | None:
    """Return the section with ROC, precision-recall and calibration curves; None for generated answers."""
    charts = probability_charts(run.predictions) if "scores" in run.fields else []
    return Section("probabilities", "Probabilities of the options", [Charts(charts)]) if charts else None


def numbers(run: RunFiles, pictures: Pictures) -> Section | None:
    """Return the section with scatter and Bland-Altman plots; None without numbers."""
    blocks: list[Block] = []
    for agreement in agreements(run.predictions, run.figures):
        failed = f", {agreement.failed:,} of them unreadable" if agreement.failed else ""
        plural = "s" * (agreement.samples != 1)
        blocks += [Charts(agreement.charts), Text(f"{agreement.name}: {agreement.samples:,} sample{plural}{failed}.")]
    return Section("numbers", "Numbers", blocks) if blocks else None


def masks(run: RunFiles, pictures: Pictures) -> Section | None:
    """Return the section with Dice by structure; None without masks."""
    rows = mask_table(run.predictions) if "reference_masks" in run.fields else []
    columns = ("structure", "samples", "Dice", "95 % from", "to")
    cells = [_structure_cells(row) for row in rows]
    return Section("masks", "Masks: Dice by structure", [Table(columns, cells)]) if rows else None


def boxes(run: RunFiles, pictures: Pictures) -> Section | None:
    """Return the section with found, missed and additional boxes; None without boxes."""
    rows = box_table(run.predictions)
    if not rows:
        return None
    columns = ("objects", "samples", "found", "missed", "additional", "recall", "precision")
    cells = []
    for row in rows:
        found, missed, additional = row.values
        ratios = [found / total if total else None for total in (found + missed, found + additional)]
        cells.append([Cell(row.name), number(row.samples), *(number(int(v)) for v in row.values), *map(number, ratios)])
    text = "A box is found if its IoU with a predicted box is larger than 0.5, matched greedily as in detection_f1."
    return Section("boxes", "Boxes", [Text(text), Table(columns, cells)])


def _structure_cells(row: StructureRow) -> list[Cell]:
    return [Cell(row.name), number(row.samples), *map(number, row.values)]


def predictions(run: RunFiles, pictures: Pictures) -> Section | None:
    """Return the section with examples and the gallery of predictions; None for a private run or no test split."""
    if run.is_private or (_has_no_test_split(run) and not run.predictions):
        return None
    if not run.predictions:
        text = run.problems.get(PREDICTIONS, "There are no predictions.")
        return Section("predictions", "Predictions", [Text(text)])
    scored = score_rows(run.predictions, run.figures, MAX_CARDS)
    result = gallery(run.predictions, scored.worst, run.split, pictures)
    examples = [_example(title, card) for title, cards in result.examples for card in cards]
    blocks: list[Block] = [Examples("Examples with boxes or masks", examples)] if examples else []
    return Section("predictions", "Predictions", [*blocks, Cards(result, scored.rules, scored.right, scored.wrong)])


def _example(title: str, card: Card) -> Example:
    score = "" if card.score is None else f"{title}: {card.score.text}"
    return Example(card.pictures, [text for text in (score, card.question) if text])
