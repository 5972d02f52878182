"""Files of the two releases of CAMUS: images, masks, measures and splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mllm.dataset.echo.planes import Plane, read_plane
from mllm.dataset.tables.text_files import read_text_file
from mllm.errors import DataError


@dataclass(frozen=True)
class Release:
    """Paths of the files of one release of CAMUS."""

    folder: Path
    parents: tuple[str, ...]
    """Folders below `folder` with one folder per patient."""
    suffix: str
    sequence: str
    """Name of the image series from one phase to the other."""
    lists: str
    """Pattern of the file with the patients of a split."""

    @classmethod
    def of(cls, folder: Path, fold: int) -> Release:
        """Return the release in a folder; raise `DataError` if there is none.

        Args:
            folder: The folder.
            fold: Number of the cross-validation fold, 1 to 10, of the older release.
        """
        if (folder / "database_nifti").is_dir():
            lists = "database_split/subgroup_{split}.txt"
            return cls(folder, ("database_nifti",), ".nii.gz", "half_sequence", lists)
        if (folder / "training").is_dir():
            lists = f"listSubGroups/subGroup{fold}_{{split}}.txt"
            return cls(folder, ("training", "testing"), ".mhd", "sequence", lists)
        raise DataError(
            f"{folder} is not a folder of CAMUS: it must contain database_nifti (with database_split) or, for the "
            "older release, training (with listSubGroups)"
        )

    def patient_folder(self, name: str) -> Path:
        """Return the folder of a patient."""
        candidates = [self.folder / parent / name for parent in self.parents]
        folder = next((candidate for candidate in candidates if candidate.is_dir()), None)
        if folder is None:
            raise DataError(f"{candidates[0]} does not exist")
        return folder

    def names(self, split: str | None) -> list[str]:
        """Return the patients of a split in the order of its file; None: all patients."""
        if split is None:
            return sorted(path.name for parent in self.parents for path in (self.folder / parent).glob("patient*"))
        path = self.list_of(split)
        if not path.is_file():
            raise DataError(f"{path} does not exist; it lists the patients of {split}")
        return read_text_file(path).split()

    def list_of(self, split: str) -> Path:
        """Return the file with the patients of a split."""
        return self.folder / self.lists.format(split=split)

    def read_info(self, name: str, chamber: str) -> dict[str, str]:
        """Read `Info_4CH.cfg` of a patient; raise `DataError` if it is missing or a line has no colon."""
        path = self.patient_folder(name) / f"Info_{chamber}.cfg"
        lines = [line for line in read_text_file(path).splitlines() if line.strip()]
        info = {}
        for number, line in enumerate(lines, start=1):
            key, colon, value = line.partition(":")
            if not colon:
                raise DataError(f"{path}, line {number}: must be 'Key: value', not {line!r}")
            info[key.strip()] = value.strip()
        return info

    def plane(self, name: str, chamber: str, phase: str, kind: str = "") -> Plane:
        """Read the image of a patient at a phase ('ED', 'ES'), or its mask with `kind='_gt'`."""
        path, frame = self.plane_file(name, chamber, phase, kind)
        return read_plane(path, frame)

    def plane_file(self, name: str, chamber: str, phase: str, kind: str = "") -> tuple[Path, int | None]:
        """Return the file of the image of a patient at a phase, and the index of its frame in a series.

        The image is a separate file or, if that is absent, a frame of the series; `Info_4CH.cfg` has its number from 1.
        """
        folder = self.patient_folder(name)
        single = folder / f"{name}_{chamber}_{phase}{kind}{self.suffix}"
        series = folder / f"{name}_{chamber}_{self.sequence}{kind}{self.suffix}"
        if single.is_file() or not series.is_file():
            return single, None
        number = self.read_info(name, chamber).get(phase, "")
        if not number.isdigit() or number == "0":
            raise DataError(f"{folder / f'Info_{chamber}.cfg'}: {phase} must be the number of a frame, from 1")
        return series, int(number) - 1
