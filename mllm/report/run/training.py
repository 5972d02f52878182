"""Sections about the training: curves, and speed and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mllm.report.run.blocks import Block, Cell, Charts, Details, Pairs, Section, Table, Text, number
from mllm.report.run.charts import Chart, Dots, Line, chart, thinned
from mllm.report.run.inputs import RunFiles
from mllm.report.run.pictures import Pictures
from mllm.run_files import TRAINING_LOG

MAX_ROWS = 100
"""Maximum number of lines of the table of losses, evenly spaced."""
NO_TERMS = {
    *("step", "epoch", "loss", "eval_loss", "grad_norm", "learning_rate", "seconds", "seconds_left"),
    *("tokens_per_second", "padding_share", "peak_memory_gb", "cpu_percent", "ram_percent"),
}
"""Keys of the log that are not terms of the loss."""
Row = dict[str, Any]


def curves(run: RunFiles, pictures: Pictures) -> Section | None:
    """Return the section with the curves of losses and learning rate; None for an evaluation."""
    if run.is_evaluation:
        return None
    if not run.log:
        return Section("curves", "Curves", [Text(run.problems.get(TRAINING_LOG, f"{TRAINING_LOG} has no entry."))])
    charts = [loss_chart(run.log), _terms_chart(run.log), _rate_chart(run.log)]
    blocks: list[Block] = [Charts([part for part in charts if part is not None])]
    rows = [
        [Cell(f"{row['step']:,}"), *(number(row[key]) if key in row else Cell("") for key in ("loss", "eval_loss"))]
        for row in _thinned_rows(run.log)
    ]
    blocks.append(Details("Table of the losses", [Table(("step", "training loss", "validation loss"), rows)]))
    return Section("curves", "Curves", blocks)


def loss_chart(log: Sequence[Row]) -> Chart | None:
    """Return the chart of training and validation loss."""
    lines = [
        line
        for number, (key, label) in enumerate((("loss", "training"), ("eval_loss", "validation")))
        if (line := _line(log, key, label, number)) is not None
    ]
    ends = [
        f"{line.label} {line.y[0]:.4g} at step {line.x[0]:g}, {line.y[-1]:.4g} at step {line.x[-1]:g}" for line in lines
    ]
    return chart("Loss", f"{'; '.join(ends)}.", "step", "loss", _with_dots(lines), smallest_step=1)


def _terms_chart(log: Sequence[Row]) -> Chart | None:
    """Return the chart of the terms of the training loss; None for a single term."""
    names = [key for key in dict.fromkeys(key for row in log for key in row) if key not in NO_TERMS]
    names = [name for name in names if not name.startswith("eval_")]
    lines = [line for index, name in enumerate(names) if (line := _line(log, name, name, index)) is not None]
    if len(lines) < 2:
        return None
    last = ", ".join(f"{line.label} {line.y[-1]:.4g}" for line in lines)
    return chart(
        "Terms of the training loss", f"At the end: {last}.", "step", "term", _with_dots(lines), smallest_step=1
    )


def _rate_chart(log: Sequence[Row]) -> Chart | None:
    """Return the chart of the learning rate; None with fewer than two entries."""
    line = _line(log, "learning_rate", "", 0)
    if line is None or len(line.x) < 2:
        return None
    text = f"From {line.y[0]:.3g} to {line.y[-1]:.3g}."
    return chart("Learning rate", text, "step", "learning rate", [line], smallest_step=1)


def _line(log: Sequence[Row], key: str, label: str, color: int) -> Line | None:
    points = [(row["step"], row[key]) for row in log if isinstance(row.get(key), (int, float))]
    return Line(label, [x for x, _ in points], [y for _, y in points], color) if points else None


def _with_dots(lines: Sequence[Line]) -> list[Any]:
    """Return the lines, and dots for those of a single point, which a line cannot show."""
    return [Dots(line.label, line.x, line.y, line.color) if len(line.x) == 1 else line for line in lines]


def _thinned_rows(log: Sequence[Row]) -> list[Row]:
    return [log[index] for index in thinned(len(log), MAX_ROWS).tolist()]


def speed(run: RunFiles, pictures: Pictures) -> Section:
    """Return the section about time, throughput and memory of the training or the evaluation."""
    title = "Memory and speed"
    if run.is_evaluation:
        counts, seconds = run.metrics.get("counts") or {}, run.metrics.get("seconds")
        rows = [("time", f"{seconds} s"), ("answers", f"{counts.get('answers', 0):,}")]
        if isinstance(seconds, (int, float)) and seconds:
            rows.append(("answers per second", f"{counts.get('answers', 0) / seconds:.2f}"))
            rows.append(("generated tokens per second", f"{counts.get('tokens', 0) / seconds:,.1f}"))
        return Section("speed", title, [Pairs(rows)])
    timed = [row for row in run.log if isinstance(row.get("seconds"), (int, float))]
    if not timed:
        return Section("speed", title, [Text(run.problems.get(TRAINING_LOG, "The log has no times."))])
    last = timed[-1]
    peak = max(row.get("peak_memory_gb") or 0.0 for row in timed)
    rows = [
        ("training time", _clock(last["seconds"])),
        ("tokens per second, mean since the start", _shown(last.get("tokens_per_second"), ",.0f")),
        ("peak memory", f"{peak:.2f} GB"),
        *_planned(run),
        ("padding", _shown(last.get("padding_share"), ".1%").replace("%", " %")),
        (
            "processor, memory of the machine in use",
            f"{plain_percent(last, 'cpu_percent')}, {plain_percent(last, 'ram_percent')}",
        ),
    ]
    charts = [
        chart("Peak memory", f"At most {peak:.2f} GB.", "step", "GB", [line], smallest_step=1)
        for line in [_line(timed, "peak_memory_gb", "", 0)]
        if line is not None and len(line.x) > 1
    ]
    line = _line(timed, "tokens_per_second", "", 1)
    if line is not None and len(line.x) > 1:
        charts.append(
            chart("Throughput", f"{line.y[-1]:,.0f} tokens/s at the end.", "step", "tokens/s", [line], smallest_step=1)
        )
    drawn = [part for part in charts if part is not None]
    return Section("speed", title, [Pairs(rows), *([Charts(drawn)] if drawn else [])])


def _planned(run: RunFiles) -> list[tuple[str, str]]:
    """Return the planned peak memory and the measured one; empty if the run was not planned."""
    memory = {} if run.facts is None else run.facts.memory
    planned, measured = memory.get("planned"), memory.get("measured")
    if not planned or not measured:
        return []
    text = f"{planned / 1e9:.2f} GB planned for samples of the greatest length, {measured / 1e9:.2f} GB measured"
    return [("memory of the training and its evaluations", text)]


def plain_percent(row: Row, key: str) -> str:
    """Return a percentage of a row of the log as text."""
    return _shown(row.get(key), ".0f") + " %"


def _shown(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else "unknown"


def _clock(seconds: float) -> str:
    """Return seconds as `H:MM:SS`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
