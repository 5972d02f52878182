"""EchoNet-Dynamic: apical four-chamber videos with traced frames and volumes (Ouyang et al., Nature 2020)."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image
from typing_extensions import override

from mllm.dataset.echo.cine import (
    ED,
    ES,
    MEASURES,
    CineDataset,
    count_unknown,
    format_counts,
    known_number,
    summarize_differences,
)
from mllm.dataset.echo.tracings import Tracing, read_tracings, stem
from mllm.dataset.indices import choose_rows, from_zero
from mllm.dataset.phantoms.echo_folders import write_echonet
from mllm.dataset.readers import read_images
from mllm.dataset.tables.records import ERROR, Records
from mllm.errors import DataError, hint
from mllm.registry import DATASETS

logger = logging.getLogger(__name__)

FILE_LIST, TRACINGS, VIDEOS = "FileList.csv", "VolumeTracings.csv", "Videos"
COLUMNS, VOLUMES = ("FileName", "EF", "Split"), ("ESV", "EDV")
"""Columns of `FileList.csv` that are read; the file of EchoNet-Pediatric has no volumes."""


@dataclass(frozen=True)
class _Video:
    """Video with its traced frames in the order of the file."""

    row: int
    name: str
    measures: dict[str, float]
    tracings: tuple[Tracing, ...]
    error: str = ""
    """Reason why the row cannot be used; empty: it can be."""

    @property
    def ed(self) -> Tracing:
        """Traced frame with the largest area."""
        return max(self.tracings, key=lambda tracing: tracing.area)

    @property
    def es(self) -> Tracing:
        """Traced frame with the smallest area."""
        return min(self.tracings, key=lambda tracing: tracing.area)


@DATASETS.register_module()
class EchoNetDataset(CineDataset):
    """End-diastolic and end-systolic frames of the videos of EchoNet-Dynamic with EF (%), EDV and ESV (mL).

    End diastole is the traced frame with the larger area, independent of the order in the file and of the frame
    numbers. Videos without two traced frames or without a known measure are dropped and counted; see `summary`. The
    folders `A4C` and `PSAX` of EchoNet-Pediatric can be read, too; they have no volumes.

    Args:
        data_path: Folder with `FileList.csv`, `VolumeTracings.csv` and `Videos`.
        split: 'TRAIN', 'VAL' or 'TEST', in any case, or a fold of EchoNet-Pediatric, '0' to '9'; None: all.
        size: Maximum number of videos, drawn by `seed`.
        options: `transforms` and `seed` of `AugmentedDataset`.
    """

    def __init__(
        self,
        data_path: str | Path,
        split: str | None = "TRAIN",
        size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.folder = Path(data_path).expanduser()
        for name in (FILE_LIST, TRACINGS, VIDEOS):
            if not (self.folder / name).exists():
                raise DataError(
                    f"{self.folder / name} does not exist: data_path must be the folder of EchoNet-Dynamic, with "
                    f"{FILE_LIST}, {TRACINGS} and {VIDEOS}"
                )
        self.records = Records(self.folder / FILE_LIST)
        self._files = {stem(path.name): path.name for path in (self.folder / VIDEOS).iterdir()}
        self.split = None if split is None else split.upper()
        self.dropped: Counter[str] = Counter()
        self._rows_of: Counter[str] = Counter()
        videos = self._read()
        chosen = choose_rows(len(videos), size, self.seed)
        self.dropped[f"beyond size={size}"] = len(videos) - len(chosen)
        self.videos = [videos[index] for index in chosen]
        logger.info("%s", self._report())

    def __len__(self) -> int:
        return len(self.videos)

    @override
    def views(self, index: int) -> dict[str, Image]:
        """Decode the two frames; raise `DataError` if the video or a frame does not exist."""
        video = self._video(index)
        images = read_images(self._path(video.name), frames=[video.ed.frame, video.es.frame])
        return dict(zip((ED, ES), images, strict=True))

    @override
    def files(self, index: int) -> list[Path]:
        return [self._path(self._video(index).name)]

    def _video(self, index: int) -> _Video:
        """Return the video of a row; raise `DataError` if the row cannot be used."""
        video = self.videos[from_zero(index, len(self))]
        if video.error:
            raise DataError(video.error)
        return video

    def _path(self, name: str) -> Path:
        """Return the file of a video; the name of an absent one ends in `.avi`."""
        return self.folder / VIDEOS / self._files.get(name, f"{name}.avi")

    @override
    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        return dict(self._video(index).measures)

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        return self.records.describe(self.videos[from_zero(index, len(self))].row)

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        return self._video(index).name

    @override
    def summary(self) -> dict[str, Any]:
        """Return counts of rows and dropped rows, and of videos in which other rules for ED disagree.

        These rules are: ED is the last traced frame in the file, and ED is the later frame of the video.
        """
        videos = [video for video in self.videos if not video.error]
        gaps = [abs(_ef(video.measures) - video.measures["EF"]) for video in videos]
        gaps = [gap for gap in gaps if not math.isnan(gap)]
        return {
            "folder": str(self.folder),
            "split": self.split,
            "videos of each split": dict(self._rows_of),
            "used": len(videos),
            "dropped": {reason: count for reason, count in self.dropped.items() if count},
            "video files missing": sum(video.name not in self._files for video in videos),
            "more than two traced frames": sum(len(video.tracings) > 2 for video in videos),
            "unknown": count_unknown([video.measures for video in videos]),
            "ED is the larger traced area": {
                "file order disagrees": sum(video.ed != video.tracings[-1] for video in videos),
                "index order disagrees": sum(video.ed.frame < video.es.frame for video in videos),
            },
            "EF against the volumes, points": summarize_differences(gaps),
        }

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write generated videos in the format of EchoNet-Dynamic, all in one split."""
        write_echonet(folder, {"TRAIN": rows}, seed=tuple(folder.name.encode()), frames=30)
        return {"data_path": str(folder), "split": "TRAIN"}

    def _read(self) -> list[_Video]:
        """Return the usable videos of the split, in the order of `FileList.csv`."""
        rows, videos = self._rows_of_split()
        traced, errors = read_tracings(self.folder / TRACINGS, rows)
        for name, index in rows.items():
            row = self.records[index]
            try:
                measures = {measure: known_number(row.get(measure), measure) for measure in MEASURES}
            except DataError as error:
                errors[name] = str(error)
            if name in errors:
                videos.append(_Video(index, name, {}, (), errors[name]))
                continue
            video = _Video(index, name, measures, tuple(traced.get(name, ())))
            if len(video.tracings) < 2:
                self.dropped["without two traced frames"] += 1
            elif video.ed.area == video.es.area:
                self.dropped["with tracings of equal area"] += 1
            elif all(map(math.isnan, measures.values())):
                self.dropped["without a known measure"] += 1
            else:
                videos.append(video)
        if not videos:
            raise DataError(f"{self.folder}: no video of split {self.split} can be used: {format_counts(self.dropped)}")
        return sorted(videos, key=lambda video: video.row)

    def _rows_of_split(self) -> tuple[dict[str, int], list[_Video]]:
        """Return the names of the videos of the split, without suffix, with their rows, and the rows with an error.

        A row that cannot be read counts in each split.
        """
        rows, faulty = dict[str, int](), list[_Video]()
        first_rows: dict[str, int] = {}
        first_row = self.records.first_row() or self.records[0]
        for column in self._required(first_row):
            if column not in first_row:
                raise DataError(f"{self.records.path}: column '{column}' is missing{hint(column, first_row)}")
        for index in range(len(self.records)):
            row = self.records.row_or_error(index)
            if ERROR in row:
                faulty.append(_Video(index, "", {}, (), row[ERROR]))
                continue
            name, split = stem(row["FileName"]), row["Split"].strip().upper()
            self._rows_of[split] += 1
            if self.split not in (None, split):
                first_rows.setdefault(name, index)
            elif name in first_rows:
                error = f"duplicate video '{name}'; it is also in {self.records.describe(first_rows[name])}"
                faulty.append(_Video(index, name, {}, (), error))
            else:
                first_rows[name] = rows[name] = index
        if not rows:
            raise DataError(f"{self.records.path} has no split '{self.split}'{hint(str(self.split), self._rows_of)}")
        return rows, faulty

    def _required(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the columns that must exist: both volumes, unless a table has none."""
        has_volumes = any(column.strip().upper() in VOLUMES for column in row)
        if not has_volumes:
            logger.info("%s has no volumes (columns ESV and EDV), so only EF is learned", self.records.path)
        return COLUMNS + VOLUMES if has_volumes else COLUMNS

    def _report(self) -> str:
        summary = self.summary()
        rules = summary["ED is the larger traced area"]
        dropped, missing = format_counts(self.dropped), summary["video files missing"]
        return (
            f"{self.folder}, split {self.split or 'all'}: {len(self):,} videos"
            + (f"; dropped: {dropped}" if dropped else "")
            + (f"; {missing:,} video files are missing" if missing else "")
            + f"; ED is the larger traced area: the order of the file disagrees in {rules['file order disagrees']:,}, "
            f"the order of the frames in {rules['index order disagrees']:,}"
        )


def _ef(measures: Mapping[str, float]) -> float:
    """Return EF in percent, computed from the volumes."""
    return 100 * (measures["EDV"] - measures["ESV"]) / measures["EDV"]
