"""CAMUS: apical views of 500 patients with masks of the left ventricle (Leclerc et al., IEEE TMI 2019)."""

from __future__ import annotations

import logging
import math
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image
from typing_extensions import override

from mllm.dataset.echo.camus_files import Release
from mllm.dataset.echo.cine import (
    PHASES,
    CineDataset,
    count_unknown,
    format_counts,
    known_number,
    summarize_differences,
)
from mllm.dataset.echo.left_ventricle import METHOD, biplane_measures
from mllm.dataset.echo.planes import to_square_pixels
from mllm.dataset.indices import choose_rows, from_zero
from mllm.dataset.phantoms.echo_folders import write_camus
from mllm.dataset.progress import with_progress
from mllm.errors import ConfigError, DataError, hint
from mllm.registry import DATASETS

logger = logging.getLogger(__name__)

CHAMBERS = {"4CH": ("4CH",), "2CH": ("2CH",), "both": ("4CH", "2CH")}
"""Value of the option `chambers` -> chamber views."""
SPLITS = ("training", "validation", "testing")
_STARTS = 1000
"""Number of possible first patients of a miniature, so that two miniatures rarely share a patient."""


@dataclass(frozen=True)
class _Patient:
    """Patient with the measures of the files and those of the masks."""

    name: str
    line: int
    measures: dict[str, float]
    from_masks: dict[str, float] | None
    """Measures of the masks, if the files have no volumes."""
    failure: str = ""
    """Reason why no volumes can be computed from the masks."""
    error: str = ""
    """Reason why the row cannot be used; empty: it can be."""


@DATASETS.register_module()
class CamusDataset(CineDataset):
    """Images at end diastole and end systole of each patient of CAMUS with EF (%), EDV and ESV (mL).

    EF comes from the files. Volumes come from the files or, if these have none, from the masks of both views
    (`left_ventricle.METHOD`); see `summary`.

    Args:
        data_path: Folder of the NIfTI release (`database_nifti`, `database_split`) or of the older MetaImage
            release (`training`, `listSubGroups`).
        split: 'training', 'validation' or 'testing', in any case; None: all.
        chambers: '4CH' (views ED and ES), '2CH', or 'both' (views 4CH ED, 4CH ES, 2CH ED, 2CH ES).
        size: Maximum number of patients, drawn by `seed`.
        fold: Number of the split into folds of the older release, 1 to 10.
        options: `transforms` and `seed` of `AugmentedDataset`.
    """

    def __init__(
        self,
        data_path: str | Path,
        split: str | None = "training",
        chambers: str = "4CH",
        size: int | None = None,
        fold: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if chambers not in CHAMBERS:
            raise ConfigError(f"chambers='{chambers}' must be 4CH, 2CH or both")
        self.split = None if split is None else split.lower()
        if self.split not in (None, *SPLITS):
            raise ConfigError(f"unknown split '{split}'{hint(str(split), SPLITS)}")
        self.chambers = CHAMBERS[chambers]
        self.release = Release.of(Path(data_path).expanduser(), fold)
        self.dropped: Counter[str] = Counter()
        names = self.release.names(self.split)
        chosen = choose_rows(len(names), size, self.seed)
        self.dropped[f"beyond size={size}"] = len(names) - len(chosen)
        indices = with_progress(chosen, "reading patients of CAMUS")
        patients = [self._read_patient(names[index], index + 1) for index in indices]
        self.patients = [
            patient for patient in patients if patient.error or not all(map(math.isnan, patient.measures.values()))
        ]
        self.dropped["without a known measure"] = len(patients) - len(self.patients)
        if not self.patients:
            reason = next((patient.failure for patient in patients if patient.failure), "its list is empty")
            raise DataError(f"{self.release.folder}: no patient of split {self.split} can be used: {reason}")
        logger.info("%s", self._report())

    def __len__(self) -> int:
        return len(self.patients)

    @override
    def views(self, index: int) -> dict[str, Image]:
        """Return the images by phase, or by chamber view and phase."""
        name = self._patient(index).name
        return {
            phase if len(self.chambers) == 1 else f"{chamber} {phase}": to_square_pixels(
                self.release.plane(name, chamber, phase)
            )
            for chamber in self.chambers
            for phase in PHASES
        }

    @override
    def files(self, index: int) -> list[Path]:
        name = self._patient(index).name
        return [self.release.plane_file(name, chamber, phase)[0] for chamber in self.chambers for phase in PHASES]

    @override
    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        return dict(self._patient(index).measures)

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        patient = self.patients[from_zero(index, len(self))]
        return self._location(patient.name, patient.line)

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        return self._patient(index).name

    def _patient(self, index: int) -> _Patient:
        """Return the patient of a row; raise `DataError` if the row cannot be used."""
        patient = self.patients[from_zero(index, len(self))]
        if patient.error:
            raise DataError(patient.error)
        return patient

    @override
    def summary(self) -> dict[str, Any]:
        """Return counts of patients, the sources of their volumes, and the difference of EF between masks and files."""
        patients = [patient for patient in self.patients if not patient.error]
        computed = [patient.from_masks for patient in patients if patient.from_masks]
        pairs = [(patient.measures["EF"], patient.from_masks["EF"]) for patient in patients if patient.from_masks]
        gaps = [abs(from_file - from_masks) for from_file, from_masks in pairs]
        reasons = [patient.failure for patient in patients if patient.failure]
        lists = {split: self.release.list_of(split) for split in SPLITS}
        return {
            "folder": str(self.release.folder),
            "split": self.split,
            "patients of each split": {
                split: len(self.release.names(split)) for split, path in lists.items() if path.is_file()
            },
            "used": len(patients),
            "dropped": {reason: count for reason, count in self.dropped.items() if count},
            "unknown": count_unknown([patient.measures for patient in patients]),
            "volumes": {
                "from the files": len(patients) - len(computed) - len(reasons),
                "from the masks": len(computed),
                "method": METHOD,
                "masks that give none": reasons,
            },
            "EF against the masks, points": summarize_differences(gaps),
        }

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write generated patients in the format of the older release of CAMUS, which needs no further package."""
        first = 1 + rows * (zlib.crc32(folder.name.encode()) % _STARTS)
        write_camus(folder, {"training": rows}, seed=tuple(folder.name.encode()), release="mhd", first=first)
        return {"data_path": str(folder), "split": "training", "fold": 1}

    def _location(self, name: str, line: int) -> str:
        folder = str(self.release.folder / name)
        return folder if self.split is None else f"{self.release.list_of(self.split)}, line {line}"

    def _read_patient(self, name: str, line: int) -> _Patient:
        """Read the measures of a patient; masks are read only if the files have no volumes."""
        try:
            info = self.release.read_info(name, "4CH")
            values = {"EF": info.get("EF", info.get("LVef")), "EDV": info.get("LVedv"), "ESV": info.get("LVesv")}
            measures = {measure: known_number(value, measure) for measure, value in values.items()}
        except DataError as error:
            return _Patient(name, line, {}, None, error=f"{name}: {error}")
        if not any(math.isnan(measures[volume]) for volume in ("EDV", "ESV")):
            return _Patient(name, line, measures, None)
        try:
            masks = {
                (chamber, phase): self.release.plane(name, chamber, phase, "_gt")
                for chamber in CHAMBERS["both"]
                for phase in PHASES
            }
            from_masks = biplane_measures(masks)
        except DataError as error:
            return _Patient(name, line, measures, None, f"{name}: {error}")
        merged = {measure: from_masks[measure] if math.isnan(value) else value for measure, value in measures.items()}
        return _Patient(name, line, merged, from_masks)

    def _report(self) -> str:
        summary = self.summary()
        volumes, gaps = summary["volumes"], summary["EF against the masks, points"]
        without, dropped = volumes["masks that give none"], format_counts(self.dropped)
        return (
            f"{self.release.folder}, split {self.split or 'all'}: {len(self):,} patients"
            + (f"; dropped: {dropped}" if dropped else "")
            + (f"; {len(without)} without volumes, for example {without[0]}" if without else "")
            + (
                f"; volumes by biplane Simpson from the masks, whose EF differs from the files by {gaps['mean']:.1f} "
                f"points on average, {gaps['largest']:.1f} at most"
                if volumes["from the masks"]
                else ""
            )
        )
