"""Facts about a trained model, stored as `facts.json` in the run folder and beside every export.

Model cards and `metrics.json` are rendered from them.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mllm.config.hardware import REPORTED_PACKAGES, git_state, installed
from mllm.errors import ConfigError
from mllm.files import write_json
from mllm.run_files import FACTS, METRICS

PLAIN_METRIC = "accuracy"
"""Metric whose figures have their own names in tables; the names of other figures are prefixed by their metric."""


@dataclass(frozen=True)
class Split:
    """One split of the data of a run."""

    type: str
    """The name of the dataset class."""
    samples: int
    skipped: int = 0
    """Number of unusable rows."""


@dataclass(frozen=True)
class AdapterFacts:
    """Facts about one adapter of a combination."""

    data: Mapping[str, Split] = field(default_factory=dict)
    """The splits by name."""
    privacy: Mapping[str, Any] | None = None
    """The privacy record of the run that trained the adapter; None for a run without differential privacy."""


@dataclass(frozen=True)
class Facts:
    """Facts about a trained model.

    An exported folder can be published, so no field contains patient data or the location of a data file. Local paths
    are possible in `base` and `settings`, if the config contains them; `push` refuses or replaces them.
    """

    base: str
    """The base model as the config names it: a name on the Hugging Face Hub or a folder."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The encoding of samples: the keys of `mllm.json`."""
    data: Mapping[str, Split] = field(default_factory=dict)
    """The splits by name: 'train', 'validation', 'test'."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings that influence the weights, under their names in a config."""
    parameters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Tower -> `tensors` and `trainable`, the numbers of trained tensors and of their elements, and `all` elements."""
    updates: int | None = None
    """Number of optimizer updates."""
    processes: int = 1
    """Number of processes that trained. Each had its share of the samples of an update."""
    engine: str = "ddp"
    """Engine of several processes: 'ddp', 'fsdp2', 'zero2' or 'zero3'."""
    idle_steps: int = 0
    """Number of further steps of the schedule that made no update, because none of their rows could be used."""
    figures: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Metric -> figure -> value on the test split; None for a value that is not a number."""
    untrained: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """`figures` of the model before the training; empty: they were not computed."""
    differences: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """`figures` minus `untrained` on the same samples, with the limits of their 95 % intervals."""
    privacy: Mapping[str, Any] | None = None
    """The privacy record of a run with differential privacy, as in `privacy.json`."""
    memory: Mapping[str, float | None] = field(default_factory=dict)
    """`planned` peak memory in bytes, for samples of the greatest length, and the `measured` one; planned
    `flops_per_token` and measured `tokens_per_second`. Empty: the run was not planned."""
    versions: Mapping[str, Any] = field(default_factory=dict)
    """Versions of Python and the packages, and the git commit of mllm, that trained the model."""
    adapters: Sequence[AdapterFacts] = ()
    """The adapters of a combination, in their order; empty for a model with one adapter."""

    def named_figures(self) -> dict[str, float | int | None]:
        """Return the figures as one table: `updates`, `idle_steps` if any, `accuracy`, `chance`, `rec/accuracy`, ..."""
        table: dict[str, float | int | None] = {} if self.updates is None else {"updates": self.updates}
        if self.idle_steps:
            table["idle_steps"] = self.idle_steps
        for metric, values in self.figures.items():
            for name, value in values.items():
                table[name if metric == PLAIN_METRIC else f"{metric}/{name}"] = value
        return table


def current_versions() -> dict[str, Any]:
    """Return the versions of Python and the installed packages, and the git commit of mllm, for `Facts.versions`."""
    return {
        "python": platform.python_version(),
        "packages": installed(REPORTED_PACKAGES),
        "git_commit": git_state()["commit"],
    }


def write_facts(folder: Path, facts: Facts) -> Path:
    """Write `facts.json` to `folder` atomically."""
    return write_json(folder / FACTS, asdict(facts))


def read_facts(folder: Path) -> Facts | None:
    """Return the facts in `folder`; None without `facts.json`, as in a folder of an older version or another tool.

    Keys that this version does not know are ignored. Raises `ConfigError` if the file cannot be read.
    """
    path = folder / FACTS
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {entry.name: values[entry.name] for entry in fields(Facts) if entry.name in values}
        adapters = tuple(AdapterFacts(_splits(part), part["privacy"]) for part in known.get("adapters", ()))
        return Facts(**{**known, "data": _splits(known), "adapters": adapters})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): delete it, or export the run again") from error


def _splits(values: Mapping[str, Any]) -> dict[str, Split]:
    """Return the splits of `values["data"]`."""
    return {
        name: Split(split["type"], split["samples"], split.get("skipped", 0))
        for name, split in values.get("data", {}).items()
    }


def known_facts(folder: Path, base: str, settings: Mapping[str, Any]) -> Facts:
    """Return the facts in `folder` with `settings` as the settings; without `facts.json` only `base` and `settings`."""
    facts = read_facts(folder)
    return Facts(base, settings) if facts is None else replace(facts, settings=settings)


def write_metrics(folder: Path, facts: Facts, strata: Mapping[str, Any]) -> Path:
    """Write `metrics.json` of a run to `folder`: the figures of the test split, after and before, and by stratum."""
    before = {"untrained": facts.untrained, "differences": facts.differences} if facts.untrained else {}
    return write_json(folder / METRICS, {"figures": facts.figures, **before, **({"strata": strata} if strata else {})})
