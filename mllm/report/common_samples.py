"""Samples that several evaluations have in common."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from mllm.engine.predictions import Predictions
from mllm.errors import ConfigError
from mllm.metrics.parts import hash_of

logger = logging.getLogger(__name__)
_STEP = np.uint64(0x9E3779B97F4A7C15)
"""Difference of the keys of rows with the same source that follow each other."""


class Samples:
    """Common samples, whose rows are read again for each pass.

    Args:
        runs: Rows of each run.
        places: Index of each common sample in each run, [M] each.
    """

    def __init__(self, runs: Sequence[Predictions], places: Sequence[np.ndarray]) -> None:
        self._runs, self._places = runs, places

    def __iter__(self) -> Iterator[tuple[dict[str, Any], ...]]:
        return self.chosen(np.arange(len(self._places[0])))

    def chosen(self, positions: np.ndarray) -> Iterator[tuple[dict[str, Any], ...]]:
        """Yield the rows of the samples at some positions among the common ones."""
        chosen = (run.chosen(places[positions]) for run, places in zip(self._runs, self._places, strict=True))
        return zip(*chosen, strict=True)


def common_samples(folders: Sequence[Path], runs: Sequence[Predictions]) -> Samples:
    """Return the samples that all runs have, in the order of the first run.

    A sample is identified by its source and, among rows of the same source, by its position. Sources are compared with
    their folders, and without them if the runs then have no sample in common.

    Args:
        folders: Folders of the runs, for messages.
        runs: Rows of each run.

    Raises:
        ConfigError: The runs have no sample in common.
    """
    for whole in (True, False):
        keys = [_keys(rows, whole) for rows in runs]
        common = reduce(np.intersect1d, keys)
        if len(common):
            break
    else:
        raise ConfigError(
            f"{' and '.join(map(str, folders))} have no sample in common: compare evaluations of the same split"
        )
    first = np.flatnonzero(np.isin(keys[0], common))
    places = [first]
    for other in keys[1:]:
        order = np.argsort(other)
        places.append(order[np.searchsorted(other, keys[0][first], sorter=order)])
    samples = Samples(runs, places)
    _warn(folders, runs, samples, len(first))
    return samples


def _warn(folders: Sequence[Path], runs: Sequence[Predictions], samples: Samples, count: int) -> None:
    """Warn of samples that are not in all runs, and of references that differ."""
    differing = [0] * len(runs)
    for rows in samples:
        for number, row in enumerate(rows):
            differing[number] += row["reference"] != rows[0]["reference"]
    for folder, run, other in zip(folders, runs, differing, strict=True):
        if count < len(run):
            logger.warning("%s: %d of %d samples are in all runs", folder, count, len(run))
        if other:
            logger.warning("%s: %d references differ from those of %s, which are used", folder, other, folders[0])


def _keys(rows: Predictions, whole: bool) -> np.ndarray:
    """Return a hash of 64 bits for each row, [N]: of its source and its position among the rows of this source.

    Args:
        rows: Rows of a run.
        whole: Sources have the folder of their file.
    """
    hashes = np.fromiter((_hash(row["source"], whole) for row in rows), np.uint64, len(rows))
    order = np.argsort(hashes, kind="stable")
    starts = np.append(True, np.diff(hashes[order]) != 0) if len(order) else np.zeros(0, bool)
    positions = np.arange(len(order))
    hashes[order] += (positions - np.maximum.accumulate(np.where(starts, positions, 0))).astype(np.uint64) * _STEP
    return hashes


def _hash(source: str, whole: bool) -> int:
    name = source if whole else source.replace("\\", "/").rpartition("/")[2]
    return hash_of(name)
