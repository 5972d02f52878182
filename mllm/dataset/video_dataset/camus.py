"""CAMUS: apical views of 500 patients with masks of the left ventricle (Leclerc et al., IEEE TMI 2019)."""

from __future__ import annotations

import logging
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from tqdm import tqdm
from typing_extensions import override

from mllm.dataset.echo.camus_files import Release
from mllm.dataset.echo.cine import MEASURES, MOMENTS, CineDataset, counted, drawn, known_number
from mllm.dataset.echo.left_ventricle import METHOD, biplane_measures
from mllm.dataset.echo.planes import shown
from mllm.dataset.phantoms.echo_folders import write_camus
from mllm.errors import ConfigError, DataError, hint
from mllm.registry import DATASETS

logger = logging.getLogger(__name__)

CHAMBERS = {"4CH": ("4CH",), "2CH": ("2CH",), "both": ("4CH", "2CH")}
"""The chamber views that the option `chambers` shows."""
SPLITS = ("training", "validation", "testing")
_MANY = 40
"""Patients from which reading masks takes long enough for a progress bar."""
_PLACES = 1000
"""Miniatures are numbered from one of so many places on, so that two of them rarely share a patient."""


@dataclass(frozen=True)
class _Patient:
    """A patient with the measures that the files give and those that the masks give."""

    name: str
    line: int
    measures: dict[str, float]
    from_masks: dict[str, float] | None
    """What the masks give, where it was asked of them."""
    why_not: str = ""
    """Why the masks give nothing."""


@DATASETS.register_module()
class CamusDataset(CineDataset):
    """A picture at end diastole and one at end systole of each patient of CAMUS with EF (%), EDV and ESV (mL).

    `data_path` is the folder of the NIfTI release (`database_nifti`, `database_split`) or of the older MetaImage one
    (`training`, `listSubGroups`), which divides in ten ways: `fold` 1 to 10. `split` is training, validation or testing
    in any case, None for all. `chambers` is 4CH (views ED and ES), 2CH, or both (views `4CH ED`, `4CH ES`, `2CH ED`,
    `2CH ES`). `size` takes at most so many patients, drawn by `seed`. EF is the file's; volumes are the file's where it
    has them, else those of the masks of both views (`left_ventricle.METHOD`). `summary` tells what was done.
    """

    def __init__(
        self,
        data_path: str | Path,
        split: str | None = "training",
        chambers: str = "4CH",
        size: int | None = None,
        fold: int = 1,
        transforms: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(transforms, seed)
        if chambers not in CHAMBERS:
            raise ConfigError(f"chambers='{chambers}' must be 4CH, 2CH or both")
        self.split = None if split is None else split.lower()
        if self.split not in (None, *SPLITS):
            raise ConfigError(f"CamusDataset: unknown split '{split}'{hint(str(split), SPLITS)}")
        self.chambers = CHAMBERS[chambers]
        self.release = Release.of(Path(data_path).expanduser(), fold)
        self.dropped: Counter[str] = Counter()
        names = self.release.names(self.split)
        chosen = drawn(len(names), size, seed)
        self.dropped[f"beyond size={size}"] = len(names) - len(chosen)
        with_progress = tqdm(chosen, desc="reading patients of CAMUS", disable=len(chosen) < _MANY, leave=False)
        patients = [self._read_patient(names[index], index + 1) for index in with_progress]
        self.patients = [one for one in patients if not all(map(math.isnan, one.measures.values()))]
        self.dropped["without a known measure"] = len(patients) - len(self.patients)
        if not self.patients:
            reason = next((one.why_not for one in patients if one.why_not), "its list is empty")
            raise DataError(f"{self.release.folder}: no patient of split {self.split} can be used: {reason}")
        logger.info("%s", self._report())

    def __len__(self) -> int:
        return len(self.patients)

    @override
    def views(self, index: int) -> dict[str, Image]:
        """The pictures, by moment or by chamber view and moment."""
        name = self.patients[self.checked(index)].name
        return {
            moment if len(self.chambers) == 1 else f"{chamber} {moment}": shown(
                self.release.plane(name, chamber, moment)
            )
            for chamber in self.chambers
            for moment in MOMENTS
        }

    @override
    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        return dict(self.patients[self.checked(index)].measures)

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        patient = self.patients[self.checked(index)]
        return self._place(patient.name, patient.line)

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        return self.patients[self.checked(index)].name

    @override
    def summary(self) -> dict[str, Any]:
        """Counts of the patients, where their volumes come from, and how far the masks are from the file's EF."""
        computed = [one.from_masks for one in self.patients if one.from_masks]
        pairs = [(one.measures["EF"], one.from_masks["EF"]) for one in self.patients if one.from_masks]
        gaps = [abs(told - found) for told, found in pairs]
        reasons = [one.why_not for one in self.patients if one.why_not]
        lists = {split: self.release.list_of(split) for split in SPLITS}
        return {
            "folder": str(self.release.folder),
            "split": self.split,
            "patients of each split": {
                split: len(self.release.names(split)) for split, path in lists.items() if path.is_file()
            },
            "used": len(self),
            "dropped": {reason: count for reason, count in self.dropped.items() if count},
            "unknown": {name: sum(math.isnan(one.measures[name]) for one in self.patients) for name in MEASURES},
            "volumes": {
                "from the files": len(self) - len(computed) - len(reasons),
                "from the masks": len(computed),
                "method": METHOD,
                "masks that give none": reasons,
            },
            "EF against the masks, points": {
                "mean": float(np.mean(gaps)) if gaps else math.nan,
                "largest": max(gaps, default=math.nan),
            },
        }

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Generated patients in the files of CAMUS's older release, which needs no further package."""
        first = 1 + rows * (zlib.crc32(folder.name.encode()) % _PLACES)
        write_camus(folder, {"training": rows}, seed=tuple(folder.name.encode()), release="mhd", first=first)
        return {"data_path": str(folder), "split": "training", "fold": 1}

    def _place(self, name: str, line: int) -> str:
        folder = str(self.release.folder / name)
        return folder if self.split is None else f"{self.release.list_of(self.split)}, line {line}"

    def _read_patient(self, name: str, line: int) -> _Patient:
        """A patient's measures; the masks are read only where the file gives no volumes."""
        try:
            facts = self.release.facts(name, "4CH")
            told = {"EF": facts.get("EF", facts.get("LVef")), "EDV": facts.get("LVedv"), "ESV": facts.get("LVesv")}
            measures = {measure: known_number(value, measure) for measure, value in told.items()}
        except DataError as error:
            raise DataError(f"{self._place(name, line)} ({name}): {error}") from error
        if not any(math.isnan(measures[volume]) for volume in ("EDV", "ESV")):
            return _Patient(name, line, measures, None)
        try:
            masks = {
                (chamber, moment): self.release.plane(name, chamber, moment, "_gt")
                for chamber in CHAMBERS["both"]
                for moment in MOMENTS
            }
            found = biplane_measures(masks)
        except DataError as error:
            return _Patient(name, line, measures, None, f"{name}: {error}")
        kept = {measure: found[measure] if math.isnan(value) else value for measure, value in measures.items()}
        return _Patient(name, line, kept, found)

    def _report(self) -> str:
        told = self.summary()
        volumes, gaps = told["volumes"], told["EF against the masks, points"]
        without, dropped = volumes["masks that give none"], counted(self.dropped)
        return (
            f"{self.release.folder}, split {self.split or 'all'}: {len(self):,} patients"
            + (f"; left out: {dropped}" if dropped else "")
            + (f"; {len(without)} without volumes, for example {without[0]}" if without else "")
            + (
                f"; volumes by biplane Simpson from the masks: their EF differs from the file's by {gaps['mean']:.1f} "
                f"points on average, {gaps['largest']:.1f} at most"
                if volumes["from the masks"]
                else ""
            )
        )
