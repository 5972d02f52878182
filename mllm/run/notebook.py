"""Functions of the notebooks in `scripts/notebooks/`: a config from six sliders, a run, and its results."""

from __future__ import annotations

import codecs
import html
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.config.hardware import CHECKOUT
from mllm.config.reading import read_config
from mllm.config.schema import RunConfig
from mllm.config.source import source_of
from mllm.errors import ConfigError, TrainingError, hint
from mllm.files import write_text
from mllm.report.figures import figures_table
from mllm.run_files import METRICS as METRICS_FILE
from mllm.run_files import REPORT_PAGE

FINETUNE = CHECKOUT / "mllm" / "pipeline" / "finetune.py"
FIRST_PICTURES = ("training_progress.png", "loss.png")
PATIENCE = 60
"""Seconds after which an interrupted run is terminated."""


@dataclass(frozen=True)
class Slider:
    """A number with a label, a default and a range."""

    label: str
    value: float
    minimum: float
    maximum: float
    step: float | None = 1
    """None: logarithmic scale."""


SLIDERS = {
    "sample_size": Slider("Training videos, at most", 100, 1, 11000, 50),
    "learning_rate": Slider("Learning rate", 2e-5, 1e-6, 1e-2, None),
    "epochs": Slider("Epochs", 3, 1, 100),
    "feature_weight": Slider("Feature weight at the start", 0.05, 0.01, 1.0, 0.01),
    "lora_r": Slider("LoRA rank", 8, 4, 64, 4),
    "lora_alpha": Slider("LoRA alpha", 16, 4, 64),
}
"""The six sliders of GEMMA 3NCORE, with its ranges and defaults."""


def make_widgets() -> dict[str, Any]:
    """Return an ipywidgets slider for each of `SLIDERS`. Raise `ConfigError` if ipywidgets is not installed."""
    try:
        import ipywidgets
    except ImportError as error:
        raise ConfigError("the sliders need ipywidgets: run pip install -e '.[notebook]'") from error
    widgets = {}
    for name, slider in SLIDERS.items():
        style = dict(description=slider.label, style={"description_width": "12em"}, layout={"width": "40em"})
        if slider.step is None:
            powers = dict(min=math.log10(slider.minimum), max=math.log10(slider.maximum))
            widgets[name] = ipywidgets.FloatLogSlider(slider.value, **powers, readout_format=".1e", **style)
        else:
            kind = ipywidgets.IntSlider if isinstance(slider.value, int) else ipywidgets.FloatSlider
            widgets[name] = kind(value=slider.value, min=slider.minimum, max=slider.maximum, step=slider.step, **style)
    return widgets


def write_config(values: Mapping[str, float], base: str | Path, path: str | Path) -> Path:
    """Write a config to `path` that derives from `base` and differs by `values`, one for each of `SLIDERS`.

    The feature weight is the weight of FeatureMatch at the start; its weight at the end is that of `base`. An objective
    with the complementary weight, 1 minus that of FeatureMatch, remains complementary. Raises `ConfigError` for unknown
    or missing names, for values outside the range of a slider, and for a `base` without FeatureMatch.
    """
    _check(values)
    path, config = Path(path), read_config(base)
    if config.data_args.train is None:
        raise ConfigError(f"{base} has no data_args.train, whose size the sliders set")
    changes = {
        "model_args": {"lora_r": int(values["lora_r"]), "lora_alpha": values["lora_alpha"]},
        "data_args": {"train": {"size": int(values["sample_size"])}},
        "training_args": {"num_train_epochs": values["epochs"], "learning_rate": values["learning_rate"]},
        "objectives": _weights(config, float(values["feature_weight"])),
    }
    parent = os.path.relpath(config.path, path.absolute().parent)
    lines = [f'"""{Path(base).stem}, with the values of the sliders."""', "", f"_base_ = [{json.dumps(parent)}]", ""]
    lines += [f"{key} = {source_of(change)}" for key, change in changes.items()]
    return write_text(path, "\n".join(lines) + "\n")


def _check(values: Mapping[str, float]) -> None:
    """Raise `ConfigError` for unknown names, missing values, and values outside the range of a slider."""
    for name in values:
        if name not in SLIDERS:
            raise ConfigError(f"there is no slider '{name}'{hint(name, SLIDERS)}")
    for name, slider in SLIDERS.items():
        if name not in values:
            raise ConfigError(f"the slider '{name}' has no value")
        slack = 1e-9 * slider.maximum  # a logarithmic slider's ends are rounded
        if not slider.minimum - slack <= values[name] <= slider.maximum + slack:
            raise ConfigError(
                f"{name} is {values[name]:g}, but must be between {slider.minimum:g} and {slider.maximum:g}"
            )


def _weights(config: RunConfig, start: float) -> dict[str, dict[str, Any]]:
    """Return the changed weights: of FeatureMatch, and of objectives with the complementary weight."""
    features = [name for name, options in config.objectives.items() if options["type"] == "FeatureMatch"]
    if len(features) != 1:
        raise ConfigError(f"{config.path} has {len(features)} objectives of type FeatureMatch; the slider sets one")
    before = _start(config.objectives[features[0]])
    changes = {features[0]: start}
    for name, options in config.objectives.items():
        if math.isclose(_start(options), 1 - before, abs_tol=1e-9) and name not in changes:
            changes[name] = round(1 - start, 9)
    fixed = {name for name in changes if not isinstance(config.objectives[name].get("weight"), dict)}
    return {name: {"weight": weight if name in fixed else {"start": weight}} for name, weight in changes.items()}


def _start(options: Mapping[str, Any]) -> float:
    """Return the weight of an objective at the start of the training."""
    weight = options.get("weight", 1.0)
    return float(weight["start"] if isinstance(weight, dict) else weight)


def train(config: str | Path, *, tiny: bool = False) -> Path:
    """Run `finetune.py` in another process, print its output while it runs, and return its run folder.

    Interrupting the kernel also interrupts the run, whose checkpoints remain. Raises `TrainingError` with the last line
    of the output if the run fails.
    """
    command = [sys.executable, str(FINETUNE), str(config), *(["--tiny"] if tiny else [])]
    tail = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        try:
            # Blocks instead of lines, because a progress bar rewrites its line.
            while block := os.read(process.stdout.fileno(), 1 << 16):
                text = decoder.decode(block)
                sys.stdout.write(text)
                sys.stdout.flush()
                tail = (tail + text)[-2000:]
        except KeyboardInterrupt:
            # Jupyter interrupts the process of the run together with the kernel.
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.terminate()
            raise
    if process.returncode:
        last = [line for line in tail.splitlines() if line.strip()][-1:]
        raise TrainingError(f"the run ended with exit code {process.returncode}: {''.join(last)}")
    return (Path("exp") / Path(config).stem / "latest").resolve()


def pictures(run: Path) -> list[Path]:
    """Return the plots in a run folder, those of the training first."""
    plots = sorted(run.rglob("*.png"))
    return sorted(plots, key=lambda path: [path.name != first for first in FIRST_PICTURES])


def figures(run: Path) -> str:
    """Return the figures of the test split as a table, or a sentence if there are none."""
    file = run / METRICS_FILE
    figures_by_metric = json.loads(file.read_text(encoding="utf-8"))["figures"] if file.is_file() else {}
    if not figures_by_metric:
        return "There are no figures: the config has no data_args.test, or no data_args.compute_metric."
    return figures_table(figures_by_metric)


def report_frame(run: Path, height: int = 800) -> str:
    """Return `report.html` of a run as HTML for the output of a cell, `height` pixels high.

    The page is in a frame of its own, so that its styles do not change the notebook. Raises `ConfigError` if the run
    has no report.
    """
    file = run / REPORT_PAGE
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: write it with mllm report {run}")
    page = html.escape(file.read_text(encoding="utf-8"))
    return f'<div><iframe srcdoc="{page}" style="width: 100%; height: {height}px; border: 0"></iframe></div>'
